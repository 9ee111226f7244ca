"""split.py: by class, duplicates on one side, the same everywhere."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.cache import decode_photos
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.duplicates import duplicate_groups
from flowers_pl.data.folder import TRAIN, VAL, Photo, check_classes, list_photos
from flowers_pl.data.split import (
    Placed,
    check_sides,
    grouped_split,
    notebook_split,
    read_split,
    straddling,
    write_split,
)
from flowers_pl.data.split_photos import class_numbers

PHOTOS = sorted(
    Photo(f"{label}/{number:03}.jpg", label)
    for label, count in {"rose": 100, "tulip": 55}.items()
    for number in range(count)
)
ALONE = np.arange(len(PHOTOS))


def sides(placed: list[Placed]) -> Counter[tuple[str, str]]:
    return Counter((one.label, one.side) for one in placed)


def test_each_class_is_split_80_to_20() -> None:
    placed, left_out = grouped_split(PHOTOS, ALONE, 0.2, seed=0)
    assert sides(placed) == {("rose", TRAIN): 80, ("rose", VAL): 20, ("tulip", TRAIN): 44, ("tulip", VAL): 11}
    assert left_out == []
    assert [one.path for one in placed] == [photo.path for photo in PHOTOS]


def test_the_split_depends_on_its_seed_alone() -> None:
    first, again, other = (grouped_split(PHOTOS, ALONE, 0.2, seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [one.path for one in first if one.side == VAL][:3] == [
        "rose/005.jpg",
        "rose/011.jpg",
        "rose/012.jpg",
    ]


def test_adding_a_photo_moves_few_others() -> None:
    more = sorted([*PHOTOS, Photo("rose/new.jpg", "rose")])
    before = {one.path: one.side for one in grouped_split(PHOTOS, ALONE, 0.2, 0)[0]}
    after = {one.path: one.side for one in grouped_split(more, np.arange(len(more)), 0.2, 0)[0]}
    assert sum(before[path] != after[path] for path in before) <= 1


def test_duplicates_stand_on_one_side() -> None:
    groups = ALONE.copy()
    groups[10:14], groups[50:52], groups[110:120] = 10, 50, 110
    placed, _ = grouped_split(PHOTOS, groups, 0.2, 0)
    assert straddling(placed) == {}
    assert placed[12].group == "rose/010.jpg"
    assert sides(placed)["rose", VAL] == 20


def test_a_large_group_does_not_take_the_class_into_validation() -> None:
    photos = [Photo(f"rose/{number:02}", "rose") for number in range(55)]
    groups = np.array([0] * 50 + list(range(50, 55)))
    for seed in range(8):
        placed, _ = grouped_split(photos, groups, 0.2, seed)
        assert 1 <= sides(placed)["rose", VAL] <= 5


def test_photos_under_two_classes_are_left_out_and_named() -> None:
    groups = ALONE.copy()
    groups[[3, 4, 120]] = 3
    placed, left_out = grouped_split(PHOTOS, groups, 0.2, 0)
    assert [one.path for one in left_out] == ["rose/003.jpg", "rose/004.jpg", "tulip/020.jpg"]
    assert left_out[0].reason == "stands under another class too: tulip/020.jpg"
    assert left_out[2].reason == "stands under another class too: rose/003.jpg, rose/004.jpg"
    assert len(placed) == len(PHOTOS) - 3


@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (1, 5), (9, 1)])
def test_small_classes_keep_a_photo_on_each_side(counts: tuple[int, int]) -> None:
    photos = [Photo(f"rose/{number}", "rose") for number in range(sum(counts))]
    groups = np.array([0] * counts[0] + [counts[0]] * counts[1])
    placed, _ = grouped_split(photos, groups, 0.2, 0)
    assert set(sides(placed)) == {("rose", TRAIN), ("rose", VAL)}
    assert straddling(placed) == {}


def test_copies_of_one_photo_cannot_be_split() -> None:
    photos = [Photo("rose/1", "rose"), Photo("rose/2", "rose")]
    placed, _ = grouped_split(photos, np.array([0, 0]), 0.2, 0)
    with pytest.raises(FlowersError, match="class 'rose' has no photo on the side 'val'"):
        check_sides(placed, ["rose"], every_class=True)


def test_the_notebooks_split_takes_the_first_names() -> None:
    groups = ALONE.copy()
    groups[[19, 20]] = 19
    placed = notebook_split(PHOTOS, groups, 0.2)
    assert [one.path for one in placed if one.side == VAL] == [
        *(f"rose/{number:03}.jpg" for number in range(20)),
        *(f"tulip/{number:03}.jpg" for number in range(11)),
    ]
    assert straddling(placed) == {"rose/019.jpg": ["rose/019.jpg", "rose/020.jpg"]}


def test_a_list_is_taken_back(tmp_path: Path) -> None:
    placed, _ = grouped_split(PHOTOS, ALONE, 0.3, 4)
    write_split(tmp_path / "split.csv", placed)
    assert read_split(tmp_path / "split.csv", PHOTOS) == placed
    write_split(tmp_path / "fewer.csv", placed[::3])
    assert read_split(tmp_path / "fewer.csv", PHOTOS) == placed[::3]


def test_names_with_newlines_commas_and_strange_bytes_are_taken_back(tmp_path: Path) -> None:
    names = ['rose/a\nb,"c".jpg', "rose/\udcff.jpg", "rose/ü.jpg", "rose/d.jpg"]
    photos = sorted(Photo(name, "rose") for name in names)
    placed, _ = grouped_split(photos, np.arange(4), 0.5, 0)
    write_split(tmp_path / "split.csv", placed)
    assert read_split(tmp_path / "split.csv", photos) == placed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,side\n", "no column 'group'"),
        ("path,label,side,group\nrose/000.jpg,rose,left,\n", "side 'left'"),
        ("path,label,side,group\nrose/999.jpg,rose,val,\n", r"'rose/999.jpg', which is not among"),
        ("path,label,side,group\nrose/000.jpg,tulip,val,\n", "which is not among"),
        ("path,label,side,group\nrose/000.jpg,rose,val,\n", "both sides"),
        ("path,label,side,group\nrose/000.jpg\n", "side ''"),
        (
            "path,label,side,group\nrose/000.jpg,rose,val,\nrose/000.jpg,rose,train,\n",
            "two rows of 'rose/000.jpg'",
        ),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(FlowersError, match=message):
        read_split(tmp_path / "split.csv", PHOTOS)


def test_an_excluded_photo_is_ignored_in_any_spelling_of_its_letters(tmp_path: Path) -> None:
    rows = "path,label,side,group\nrose/000.jpg,rose,val,\nrose/001.jpg,rose,train,\n"
    (tmp_path / "split.csv").write_text(f"{rows}rose/{NFC}.jpg,rose,train,\n", encoding="utf-8")
    placed = read_split(tmp_path / "split.csv", PHOTOS, {f"rose/{NFD}.jpg"})
    assert [one.path for one in placed] == ["rose/000.jpg", "rose/001.jpg"]


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match="'grouped', 'notebook'"):
        read_split(tmp_path / "none.csv", PHOTOS)


@pytest.mark.slow
def test_real_photos_no_group_straddles_and_conflicts_are_named(real_photos: Path) -> None:
    photos = list_photos(real_photos)
    decoded = decode_photos(real_photos, photos, 64)
    groups = duplicate_groups(decoded.digests, decoded.phashes, decoded.thumbs)
    placed, left_out = grouped_split(decoded.photos, groups, 0.2, 0)
    assert straddling(placed) == {}
    one_side: dict[int, set[str]] = {}
    side = {one.path: one.side for one in placed}
    for photo, group in zip(decoded.photos, groups.tolist(), strict=True):
        one_side.setdefault(group, set()).add(side.get(photo.path, "out"))
    assert all(len(found) == 1 for found in one_side.values())
    conflicts = ("17104364030_ee31ee279b_n", "17291451621_0e39f08b9e_n", "17291930305_79deae6a90_n")
    assert [one.path for one in left_out] == [
        f"{label}/{name}.jpg" for label in ("rose", "tulip") for name in conflicts
    ]
    same = {one.group for one in placed if one.path.startswith("tulip/7166550328_de0d73cfa9")}
    assert same == {"tulip/7166550328_de0d73cfa9.jpg"}
    assert sum(one.side == VAL for one in placed) == pytest.approx(0.2 * len(placed), abs=3)
    assert straddling(
        notebook_split(decoded.photos, groups, 0.2)
    )  # which is why the notebook's figures flattered it


# ---------------------------------------------------------------- the same letters, other bytes

NFC, NFD = (unicodedata.normalize(form, "Gänseblümchen") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("listed", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_a_split_from_another_system_names_the_same_photos(tmp_path: Path, listed: str, stored: str) -> None:
    photos = [Photo(f"{stored}/{number}.jpg", stored) for number in range(4)]
    placed = [Placed(f"{listed}/{number}.jpg", listed, VAL if number else TRAIN, "") for number in range(4)]
    write_split(tmp_path / "split.csv", placed)
    read = read_split(tmp_path / "split.csv", photos)
    assert [(photo.path, photo.label) for photo in read] == [tuple(photo) for photo in photos]


def test_a_test_folder_from_another_system_has_the_same_classes(tmp_path: Path) -> None:
    for name in (NFD, "rose"):
        (tmp_path / name).mkdir()
        draw_flower("rose", 1, 40).save(tmp_path / name / "1.png")
    data = FlowersDataModule(test_root=str(tmp_path), image_size=32)
    data.classes = [NFC, "rose"]
    data.setup("test")
    assert {photo.label for photo in data.reported_photos} == {NFC, "rose"}
    (batch,) = data.test_dataloader()
    assert sorted(batch.labels.tolist()) == [0, 1]


def test_folders_that_look_the_same_are_one_class(tmp_path: Path) -> None:
    for name in (NFC, NFD, "rose"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    assert len({photo.label for photo in list_photos(tmp_path)}) == 2


def test_a_split_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    placed, _ = grouped_split(PHOTOS, ALONE, 0.3, 4)
    write_split(tmp_path / "split.csv", placed)
    text = (tmp_path / "split.csv").read_text()
    (tmp_path / "split.csv").write_text(text.replace(",", ";").replace("\n", "\r\n") + ";;;\r\n", "utf-8-sig")
    assert read_split(tmp_path / "split.csv", PHOTOS) == placed


def test_rows_that_name_no_photo_are_counted(tmp_path: Path) -> None:
    placed, _ = grouped_split(PHOTOS, ALONE, 0.3, 4)
    write_split(tmp_path / "split.csv", placed)
    with pytest.raises(FlowersError, match=r"'rose/000.jpg', .*, and 2 more of its 155 rows name none"):
        read_split(tmp_path / "split.csv", PHOTOS[3:])


# ---------------------------------------------------------------- classes of unusual number


def test_a_thousand_classes_are_split_and_named_briefly(tmp_path: Path) -> None:
    photos = [Photo(f"{label:04}/{number}", f"{label:04}") for label in range(1200) for number in range(3)]
    placed, left_out = grouped_split(photos, np.arange(len(photos)), 0.2, 0)
    names = check_classes(photos, photos, tmp_path)
    check_sides(placed, names, every_class=True)
    assert (len(names), len(placed), left_out) == (1200, 3600, [])
    with pytest.raises(FlowersError, match=r"class 'moss', .*, 0019 and 1,180 more") as error:
        class_numbers(["moss"], names, tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("number", [0, 1])
def test_a_class_without_two_photos_is_named(tmp_path: Path, number: int) -> None:
    for label, count in (("rose", 3), ("tulip", number)):
        (tmp_path / label).mkdir()
        for drawing in range(count):
            draw_flower("rose", drawing, 40).save(tmp_path / label / f"{drawing}.png")
    data = FlowersDataModule(str(tmp_path), image_size=32, workers=0)
    message = "tulip' is empty; put photos there" if not number else "class 'tulip' in .* has 1 usable photo"
    with pytest.raises(FlowersError, match=message):
        data.setup("fit")

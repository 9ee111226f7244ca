"""exclude.py: a list of photos to leave out is written safely, taken back, and obeyed."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv, write_csv
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.exclusions import read_exclusions, write_exclusions
from flowers_pl.data.folder import EXCLUDED, LeftOut
from flowers_pl.data.split import write_split

LISTED = [
    LeftOut(name, 'why, "indeed"\nso')
    for name in (
        "rose/a.jpg",
        '=cmd|" /C calc"!A0/b.jpg',
        "+1/c",
        "-1/d",
        "@x/e",
        "\t/f",
        "\r/g",
        "rose/h\ni",
        "rose/\udcff",
    )
]


def module(root: Path, **settings: object) -> FlowersDataModule:
    data = FlowersDataModule(root=str(root), image_size=32, workers=0, **settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


def test_a_list_is_taken_back_and_no_cell_is_a_formula(tmp_path: Path) -> None:
    write_exclusions(tmp_path / "list.csv", LISTED)
    assert read_exclusions(tmp_path / "list.csv") == {path: reason for path, reason, _ in LISTED}
    with open(tmp_path / "list.csv", newline="", errors="surrogateescape") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert len(cells) == 2 + 2 * len(LISTED)
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]


def test_reasons_are_not_needed(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nrose/a.jpg\n\n./rose/b.jpg\n")
    assert read_exclusions(tmp_path / "list.csv") == {"rose/a.jpg": "", "rose/b.jpg": ""}


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("rose/a.jpg\n")
    with pytest.raises(FlowersError, match=r"--data.exclude: .*no column 'path'"):
        read_exclusions(tmp_path / "list.csv")
    with pytest.raises(FlowersError, match=r"--data.exclude: .*none.csv.* cannot be read"):
        read_exclusions(tmp_path / "none.csv")


@pytest.mark.parametrize("split", ["grouped", "notebook"])
def test_photos_on_the_list_take_no_part(drawings: Path, tmp_path: Path, split: str) -> None:
    every = module(drawings, split=split)
    listed = [every.reported_photos[0].path, every.placed[7].path]
    write_exclusions(tmp_path / "list.csv", [LeftOut(listed[0], "blurred"), LeftOut(listed[1], "")])
    data = module(drawings, split=split, exclude=str(tmp_path / "list.csv"))
    assert {one.path for one in every.placed} - {one.path for one in data.placed} == set(listed)
    assert sorted(data.left_out) == sorted(
        [
            LeftOut(listed[0], "is on the list list.csv: blurred", EXCLUDED),
            LeftOut(listed[1], "is on the list list.csv", EXCLUDED),
        ]
    )
    assert len(data.train_photos) + len(data.val_photos) == len(every.placed) - 2


def test_a_given_split_goes_without_them_too(drawings: Path, tmp_path: Path) -> None:
    every = module(drawings)
    write_split(tmp_path / "split.csv", every.placed)
    write_exclusions(tmp_path / "list.csv", [LeftOut(every.placed[3].path, "")])
    data = module(drawings, split=str(tmp_path / "split.csv"), exclude=str(tmp_path / "list.csv"))
    assert data.placed == [one for one in every.placed if one.path != every.placed[3].path]


def test_one_of_two_copies_on_the_list_settles_the_conflict(tmp_path: Path, drawings: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(drawings, root)
    right, wrong = module(drawings).placed[0].path, "tulip/copy.png"
    shutil.copy(root / right, root / wrong)
    assert {one.path for one in module(root).left_out} == {wrong, right}
    write_exclusions(tmp_path / "list.csv", [LeftOut(wrong, "it is the other")])
    data = module(root, exclude=str(tmp_path / "list.csv"))
    assert [one.path for one in data.left_out] == [wrong]
    assert right in {one.path for one in data.placed}


def test_an_unreadable_file_on_the_list_is_no_error(drawings: Path, tmp_path: Path) -> None:
    shutil.copytree(drawings, tmp_path / "photos")
    (tmp_path / "photos" / "rose" / "text.png").write_text("no picture")
    with pytest.raises(FlowersError, match=r"'rose/text.png' .* repair or remove them, or name them in"):
        module(tmp_path / "photos", unreadable="error")
    write_exclusions(tmp_path / "list.csv", [LeftOut("rose/text.png", "no picture")])
    data = module(tmp_path / "photos", unreadable="error", exclude=str(tmp_path / "list.csv"))
    assert data.left_out == [LeftOut("rose/text.png", "is on the list list.csv: no picture", EXCLUDED)]


def test_a_list_for_another_folder_is_refused(drawings: Path, tmp_path: Path) -> None:
    write_exclusions(tmp_path / "list.csv", [LeftOut("rose/nowhere.jpg", "")])
    with pytest.raises(FlowersError, match=r"none of the 1 photos .* is below --data.root"):
        module(drawings, exclude=str(tmp_path / "list.csv"))


def test_a_class_that_the_list_empties_is_named(drawings: Path, tmp_path: Path) -> None:
    roses = [file.relative_to(drawings).as_posix() for file in (drawings / "rose").iterdir()]
    write_exclusions(tmp_path / "list.csv", [LeftOut(path, "") for path in roses])
    with pytest.raises(FlowersError, match=r"class 'rose' .* has 0 usable photos"):
        module(drawings, exclude=str(tmp_path / "list.csv"))


# ---------------------------------------------------------------- lists that went through a spreadsheet


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfpath,reason\r\nrose/a.jpg,\r\nrose/b.jpg,dark\r\n",
        b"path;reason\r\nrose/a.jpg;\r\nrose/b.jpg;dark\r\n;\r\n",
        b"\xef\xbb\xbfsep=;\r\npath;reason\r\nrose/a.jpg;\r\nrose/b.jpg;dark\r\n",
        b"path\treason\rrose/a.jpg\t\rrose/b.jpg\tdark\r",
        "path\treason\r\nrose/a.jpg\t\r\nrose/b.jpg\tdark\r\n".encode("utf-16"),
        b'"reason" , "path" \n"","rose/a.jpg"\ndark,rose/b.jpg\n'.replace(b" ,", b",").replace(b", ", b","),
    ],
)
def test_a_list_saved_by_a_spreadsheet_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clean.csv").write_bytes(content)
    assert read_exclusions(tmp_path / "clean.csv") == {"rose/a.jpg": "", "rose/b.jpg": "dark"}


def test_rows_that_name_no_photo_are_reported(
    drawings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = ["rose/gone.png", "tulip\\0.png", module(drawings).placed[0].path]
    write_exclusions(tmp_path / "clean.csv", [LeftOut(path, "") for path in listed])
    assert len(module(drawings, exclude=str(tmp_path / "clean.csv")).left_out) == 1
    assert "2 of the 3 photos that" in caplog.text
    assert "are not below --data.root: rose/gone.png, tulip" in caplog.text


def test_a_class_name_with_a_semicolon_does_not_change_the_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", ("path", "a;b;c"), [("x;y", "1")])
    assert read_csv(tmp_path / "table.csv", ["path"]) == [{"path": "x;y", "a;b;c": "1"}]

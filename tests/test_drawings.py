"""The drawn flowers: the same for the same arguments, different otherwise, and never in a user's way."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.drawing_folder import write_drawings
from flowers_pl.data.drawings import KINDS, draw_flower


def pixels(kind: str, seed: int, size: int = 48) -> np.ndarray:
    return np.asarray(draw_flower(kind, seed, size))


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below `root`, hidden ones too, with its time of change and inode."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {p.relative_to(root).as_posix(): (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 96])
def test_a_drawing_is_a_square_rgb_picture_with_something_on_it(kind: str, size: int) -> None:
    picture = draw_flower(kind, 0, size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))
    assert np.asarray(picture).std() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_drawing_whatever_was_drawn_between(kind: str) -> None:
    before = pixels(kind, 7)
    np.random.seed(1)
    draw_flower("rose", 3)
    assert np.array_equal(before, pixels(kind, 7))


def test_drawing_leaves_the_global_generator_alone() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    draw_flower("tulip", 0)
    assert np.random.random() == expected


def test_another_process_draws_the_same_bytes() -> None:
    program = (
        "import hashlib; from flowers_pl.data.drawings import KINDS, draw_flower;"
        "print(hashlib.sha256(b''.join(draw_flower(k, 11, 48).tobytes() for k in KINDS)).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(draw_flower(kind, 11, 48).tobytes() for kind in KINDS)).hexdigest()
    assert run.stdout.strip() == here


def test_no_two_of_many_seeds_and_kinds_draw_the_same() -> None:
    drawings = {draw_flower(kind, seed, 32).tobytes() for kind in KINDS for seed in range(20)}
    assert len(drawings) == 20 * len(KINDS)


def test_kinds_of_one_seed_do_not_share_background_and_place() -> None:
    """The kind is part of the seed: the corners, where no flower reaches, would be alike otherwise."""
    corners = [pixels(kind, 4)[:4, :4].astype(float).mean((0, 1)) for kind in KINDS]
    assert all(np.abs(a - b).max() > 1 for i, a in enumerate(corners) for b in corners[:i])


def test_the_scene_is_the_same_at_every_size() -> None:
    large = draw_flower("sunflower", 2, 128).resize((32, 32), Image.Resampling.BOX)
    small = draw_flower("sunflower", 2, 32)
    other = draw_flower("sunflower", 3, 32)
    near, far = (np.abs(np.asarray(large, float) - np.asarray(p, float)).mean() for p in (small, other))
    assert near < 15 < far


def test_an_unknown_kind_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(ValueError, match=r"orchid.*daisy, dandelion, rose, sunflower, tulip"):
        draw_flower("orchid", 0)


def test_write_drawings_writes_so_many_of_each_kind_and_a_marker(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    write_drawings(root, 3, seed=2, size=32)
    pictures = {f"{kind}/{kind}_{index:04d}.png" for kind in KINDS for index in range(3)}
    assert set(listing(root)) == {*pictures, ".drawn.json"}
    marker = json.loads((root / ".drawn.json").read_text())
    assert marker | {"version": 0} == {"per_class": 3, "seed": 2, "size": 32, "version": 0}
    with Image.open(root / "rose" / "rose_0002.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert [path.name for path in root.parent.iterdir()] == ["yet"], "a temporary folder was left behind"


def test_written_files_hold_all_different_drawings_that_depend_on_the_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_drawings(tmp_path / str(seed), 4, seed=seed, size=32)
    pictures = [Image.open(path).tobytes() for path in tmp_path.rglob("*.png")]
    assert len(pictures) == len(set(pictures)) == 2 * 4 * len(KINDS)


def test_the_same_drawings_are_not_drawn_again(tmp_path: Path) -> None:
    write_drawings(tmp_path / "d", 2, size=32)
    (tmp_path / "d" / "notes.txt").write_text("anything may lie here as long as nothing is to be replaced")
    before = listing(tmp_path / "d")
    write_drawings(tmp_path / "d", 2, size=32)
    assert listing(tmp_path / "d") == before


@pytest.mark.parametrize("change", [{"per_class": 1}, {"seed": 9}, {"size": 24}])
def test_other_drawings_are_replaced(tmp_path: Path, change: dict[str, int]) -> None:
    root, first = tmp_path / "d", {"per_class": 2, "seed": 0, "size": 32}
    write_drawings(root, **first)
    old = (root / "daisy" / "daisy_0000.png").read_bytes()
    write_drawings(root, **(first | change))
    assert len(list(root.rglob("*.png"))) == (first | change)["per_class"] * len(KINDS)
    assert ((root / "daisy" / "daisy_0000.png").read_bytes() == old) == ("per_class" in change)
    assert [path.name for path in tmp_path.iterdir()] == ["d"], "a temporary folder was left behind"


def test_drawings_of_another_version_are_replaced(tmp_path: Path) -> None:
    write_drawings(tmp_path / "d", 1, size=32)
    (tmp_path / "d" / ".drawn.json").write_text("{torn")
    write_drawings(tmp_path / "d", 1, size=32)
    assert json.loads((tmp_path / "d" / ".drawn.json").read_text())["per_class"] == 1


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write_drawings(tmp_path, 1, size=32)
    assert len(list(tmp_path.rglob("*.png"))) == len(KINDS)


@pytest.mark.parametrize("name", ["daisy/mine.jpg", "daisy/daisy_0000.png", "readme.txt"])
def test_a_users_own_folder_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    photo = tmp_path / "photos" / name
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"a photo of mine")
    with pytest.raises(FlowersError, match=r"photos .*another folder"):
        write_drawings(tmp_path / "photos", 1, size=32)
    assert list(listing(tmp_path)) == [f"photos/{name}"]
    assert photo.read_bytes() == b"a photo of mine"


@pytest.mark.parametrize("name", ["daisy/mine.jpg", "daisy/rose_0000.png", "orchid/orchid_0000.png"])
def test_a_photo_put_among_drawings_is_never_replaced(tmp_path: Path, name: str) -> None:
    write_drawings(tmp_path / "d", 1, size=32)
    (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "d" / name).write_bytes(b"a photo of mine")
    before = listing(tmp_path)
    with pytest.raises(FlowersError, match="another folder"):
        write_drawings(tmp_path / "d", 2, size=32)
    assert listing(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("mine")
    with pytest.raises(FlowersError, match="another folder"):
        write_drawings(tmp_path / "d", 1)
    assert (tmp_path / "d").read_text() == "mine"


def test_a_failure_midway_leaves_the_former_drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_drawings(tmp_path / "d", 1, size=32)
    before = listing(tmp_path)

    def broken(kind: str, seed: int, size: int) -> Image.Image:
        raise OSError("no space left on device")

    monkeypatch.setattr("flowers_pl.data.drawing_folder.draw_flower", broken)
    with pytest.raises(OSError, match="no space"):
        write_drawings(tmp_path / "d", 2, size=32)
    assert listing(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["d"]

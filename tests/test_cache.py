"""cache.py: decoded once, kept whole, made again when something changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_pl.core.errors import FlowersError
from flowers_pl.data import decode_workers
from flowers_pl.data.cache import DecodedPhotos, FilePixels, decode_photos
from flowers_pl.data.decoding import load_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.folder import list_photos


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four readable photos and two that are none."""
    for kind in ("daisy", "rose"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(2):
            draw_flower(kind, number, 60 + number).save(tmp_path / "set" / kind / f"{number}.png")
    (tmp_path / "set" / "daisy" / "text.jpg").write_text("no picture")
    (tmp_path / "set" / "rose" / "empty.jpg").touch()
    return tmp_path / "set"


def decode(root: Path, **options: object) -> DecodedPhotos:
    return decode_photos(root, list_photos(root), 32, root.parent / "cache", **{"workers": 0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_are_those_of_the_files(root: Path, workers: int) -> None:
    found = decode(root, workers=workers)
    assert [photo.path for photo in found.photos] == [
        "daisy/0.png",
        "daisy/1.png",
        "rose/0.png",
        "rose/1.png",
    ]
    for photo, row in zip(found.photos, found.rows, strict=True):
        expected = load_photo(root / photo.path, 32).permute(1, 2, 0)
        assert torch.equal(torch.from_numpy(np.array(found.pixels[row])), expected)
    assert [one.path for one in found.left_out] == ["daisy/text.jpg", "rose/empty.jpg"]
    assert "not a picture" in found.left_out[0].reason
    assert "empty" in found.left_out[1].reason


def test_the_second_time_nothing_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decode(root)
    monkeypatch.setattr(decode_workers, "read_photo", lambda path: pytest.fail("decoded again"))
    again = decode(root)
    assert again.photos == first.photos
    assert again.left_out == first.left_out
    assert again.digests == first.digests
    assert np.array_equal(again.thumbs, first.thumbs)
    assert np.array_equal(again.phashes, first.phashes)


def change_content(root: Path) -> None:
    shutil.copy(root / "rose" / "0.png", root / "daisy" / "0.png")


def change_content_of_equal_length_and_time(root: Path) -> None:
    file = root / "daisy" / "0.png"
    stat = file.stat()
    file.write_bytes((root / "rose" / "0.png").read_bytes()[: stat.st_size].ljust(stat.st_size, b"\0"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def remove(root: Path) -> None:
    (root / "daisy" / "0.png").unlink()


def add(root: Path) -> None:
    draw_flower("rose", 9, 50).save(root / "rose" / "a.png")


@pytest.mark.parametrize("change", [change_content, change_content_of_equal_length_and_time, remove, add])
def test_a_change_of_the_photos_is_seen(root: Path, change: object) -> None:
    before = decode(root)
    change(root)  # type: ignore[operator]
    after = decode(root)
    assert (after.photos, after.digests) != (before.photos, before.digests)
    for photo, row in zip(after.photos, after.rows, strict=True):
        expected = load_photo(root / photo.path, 32).permute(1, 2, 0).numpy()
        assert np.array_equal(after.pixels[row], expected)


@pytest.mark.parametrize("file", ["table.json", "pixels.npy", "thumbs.npy"])
@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_torn_cache_is_made_again(root: Path, file: str, damage: str) -> None:
    before = decode(root)
    pixels = np.array(before.pixels)
    (place,) = (root.parent / "cache").glob(f"*/{file}")
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes(place.read_bytes()[:-50])
    again = decode(root)
    assert again.digests == before.digests
    assert np.array_equal(np.asarray(again.pixels), pixels)


def test_a_failure_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(decode_workers, "read_photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(root)
    assert [path for path in (root.parent / "cache").iterdir() if not path.name.endswith(".lock")] == []


def test_a_place_that_cannot_be_written_is_named(root: Path) -> None:
    (root.parent / "cache").write_text("a file stands where the folder should")
    with pytest.raises(FlowersError, match=r"--data.cache_dir: .*cache"):
        decode(root)


def test_without_a_cache_the_files_are_read_each_time(root: Path) -> None:
    kept, unkept = decode(root), decode(root, keep=False)
    assert isinstance(unkept.pixels, FilePixels)
    assert unkept.pixels.shape == kept.pixels.shape
    assert torch.equal(
        torch.from_numpy(unkept.pixels[unkept.rows]), torch.from_numpy(np.asarray(kept.pixels[kept.rows]))
    )
    for name in ("photos", "digests", "left_out"):
        assert getattr(unkept, name) == getattr(kept, name)
    assert np.array_equal(unkept.thumbs, kept.thumbs)
    (place,) = (root.parent / "cache").glob("*-unkept")
    assert not (place / "pixels.npy").exists()
    (root / unkept.photos[0].path).unlink()
    with pytest.raises(FlowersError, match="changed during the run"):
        unkept.pixels[unkept.rows[:1]]

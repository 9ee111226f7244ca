"""cache.py: decoded once, kept whole, made again when something changed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowers_pl.core.errors import FlowersError
from flowers_pl.data import cache, decode_workers
from flowers_pl.data.batches import CachedPhotos
from flowers_pl.data.cache import DecodedPhotos, FilePixels, decode_photos
from flowers_pl.data.cache_folder import entry_lock
from flowers_pl.data.cache_list import cached_sets, clear_cache
from flowers_pl.data.decoding import load_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.duplicates import fingerprint
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
    given: dict[str, Any] = {"cache_dir": root.parent / "cache", "workers": 0, **options}
    return decode_photos(root, list_photos(root), 32, **given)


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
        assert torch.equal(torch.from_numpy(found.pixels[row]), expected)
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


@pytest.mark.parametrize("file", ["index.npz", "pixels-*", "thumbs-*"])
@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_torn_cache_is_made_again(root: Path, file: str, damage: str) -> None:
    before = decode(root)
    pixels = before.pixels[before.rows]
    (place,) = (root.parent / "cache").glob(f"*/{file}")
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes(place.read_bytes()[:-50])
    again = decode(root)
    assert again.digests == before.digests
    assert np.array_equal(again.pixels[again.rows], pixels)


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
    assert torch.equal(torch.from_numpy(unkept.pixels[unkept.rows]), torch.from_numpy(kept.pixels[kept.rows]))
    for name in ("photos", "digests", "left_out"):
        assert getattr(unkept, name) == getattr(kept, name)
    assert np.array_equal(unkept.thumbs, kept.thumbs)
    (place,) = (root.parent / "cache").glob("*-unkept")
    assert not list(place.glob("pixels-*"))
    (root / unkept.photos[0].path).unlink()
    with pytest.raises(FlowersError, match="changed during the run"):
        unkept.pixels[unkept.rows[:1]]


# ---------------------------------------------------------------- room, passing faults, other processes


@pytest.mark.parametrize("workers", [0, 2])
def test_no_room_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    def full(file: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FlowersError, match=r"^--data.cache_dir: .*\(No space left on device\); make room"):
        decode(root, workers=workers)
    assert [path for path in (root.parent / "cache").iterdir() if path.suffix != ".lock"] == []


def test_a_file_system_that_cannot_reserve_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(file: int, start: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert len(decode(root).photos) == 4


def test_the_room_is_there_before_it_is_mapped(root: Path) -> None:
    decode(root)
    (pixels,) = (root.parent / "cache").glob("*/pixels-*")
    assert pixels.stat().st_blocks * 512 >= 6 * 32 * 32 * 3  # rows of files that cannot be read, too


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_fault_that_passes_is_forgotten(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = Path.open

    def fail(self: Path, *args: Any, **options: Any) -> Any:
        if self == root.resolve() / "rose/1.png":
            raise OSError(number, os.strerror(number))
        return real(self, *args, **options)

    expected = decode(root, cache_dir=root.parent / "other")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        first = decode(root)
        still = decode(root)
    assert "rose/1.png" in {entry.path for entry in first.left_out} & {entry.path for entry in still.left_out}
    assert "rose/1.png" in {entry.path for entry in decode(root, retry=False).left_out}
    monkeypatch.setattr(decode_workers, "fingerprint", only_once(fingerprint))
    again = decode(root)
    assert again.photos == expected.photos
    assert again.left_out == expected.left_out
    assert again.digests == expected.digests
    assert np.array_equal(again.thumbs, expected.thumbs)
    assert np.array_equal(again.pixels[again.rows], expected.pixels[expected.rows])


def only_once(function: Any) -> Any:
    """Allow one call: what could be read before is not decoded again."""
    calls = iter([function])
    return lambda photo: next(calls)(photo)


def test_facts_about_the_bytes_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decode(root)
    monkeypatch.setattr(decode_workers, "read_photo", lambda path: pytest.fail("read again"))
    assert decode(root).left_out == first.left_out


def test_a_killed_worker_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main_process = os.getpid()

    def killed(path: Path) -> None:
        assert os.getpid() != main_process
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(decode_workers, "read_photo", killed)
    with pytest.raises(FlowersError, match=r"was killed, perhaps because memory ran out; .*--data.workers"):
        decode(root, workers=2)


def test_without_shared_memory_one_process_decodes(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = decode_workers._start

    def no_semaphores(decoder: Any, workers: int) -> Any:
        if workers:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return start(decoder, workers)

    monkeypatch.setattr(decode_workers, "_start", no_semaphores)
    assert len(decode(root, workers=2).photos) == 4
    assert "No worker processes can be started" in caplog.text


BUILD = """
import os, sys, time
from pathlib import Path
from flowers_pl.data import cache, decode_workers
from flowers_pl.data.cache import decode_photos
from flowers_pl.data.folder import list_photos
root, cache, wait = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if wait == "build":
    decode_workers.read_photo = lambda path: (print("ready", flush=True), time.sleep(60))
found = decode_photos(root, list_photos(root), 32, cache, workers=0)
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(root: Path, wait: str) -> Iterator[subprocess.Popen[str]]:
    """Build or use the cache in another process; kill -9 at the end."""
    command = [sys.executable, "-c", BUILD, str(root), str(root.parent / "cache"), wait]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_leftovers_of_a_killed_process_are_swept(root: Path) -> None:
    with another_process(root, "build"):
        (building,) = cached_sets(root.parent / "cache")
        assert building.in_use
        assert clear_cache(root.parent / "cache") == []
    (leftover,) = cached_sets(root.parent / "cache")
    assert not leftover.in_use
    removed = leftover.path.with_name(f".{leftover.path.name}-abcdefgh")  # by a process that was killed, too
    removed.mkdir()
    (root.parent / "cache" / ".mine-abcdefgh").mkdir()  # nothing of ours
    decode(root)
    names = {path.name for path in (root.parent / "cache").iterdir() if path.suffix != ".lock"}
    assert names == {leftover.path.name, ".mine-abcdefgh"}
    assert len(list(leftover.path.glob("pixels-*"))) == 1


@pytest.mark.slow
def test_the_cache_is_listed_and_cleared_but_for_what_is_in_use(root: Path) -> None:
    folder = root.parent / "cache"
    assert cached_sets(folder) == clear_cache(folder) == []
    (folder / "my photos").mkdir(parents=True)
    with another_process(root, "use"):
        decode(root, keep=False)
        used, unused = cached_sets(folder)
        assert (used.in_use, unused.in_use) == (True, False)
        assert used.num_bytes > unused.num_bytes > 0
        assert 0 <= used.age < 600
        assert [cached.path for cached in clear_cache(folder)] == [unused.path]
        assert [cached.path for cached in cached_sets(folder)] == [used.path]
    assert [cached.path for cached in clear_cache(folder)] == [used.path]
    assert [path.name for path in folder.iterdir()] == ["my photos"]


def test_what_this_process_uses_is_in_use_until_it_lets_go(root: Path) -> None:
    found = decode(root)
    photos = CachedPhotos(found, found.rows, np.zeros(4, np.int64))
    del found
    assert clear_cache(root.parent / "cache") == []
    assert len(photos.read(np.arange(4))) == 4
    del photos
    assert len(clear_cache(root.parent / "cache")) == 1


def test_a_second_user_shares_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o002)
    try:
        first = decode(root)
    finally:
        os.umask(before)
    (entry,) = (path for path in (root.parent / "cache").iterdir() if path.is_dir())
    modes = {path.name.split("-")[0]: path.stat().st_mode & 0o777 for path in (entry, *entry.iterdir())}
    assert modes == {"set": 0o775, **dict.fromkeys(("pixels", "thumbs", "index.npz", "used"), 0o664)}
    assert Path(f"{entry}.lock").stat().st_mode & 0o777 == 0o666

    def refuse(folder: Path) -> Any:
        if folder == entry:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return entry_lock(folder)

    monkeypatch.setattr(cache, "entry_lock", refuse)
    assert decode(root).digests == first.digests
    add(root)
    assert len(decode(root).photos) == 5  # in a cache of this user's own
    assert len(cached_sets(root.parent / "cache")) == 2

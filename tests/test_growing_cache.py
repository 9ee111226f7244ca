"""The cache grows by what is new: decodes are counted, and processes are killed, raced and cleared away."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.data import cache_index, cache_list, decode_workers
from flowers_pl.data.cache import DecodedPhotos, decode_photos
from flowers_pl.data.cache_folder import Hold, entry_lock
from flowers_pl.data.cache_index import INDEX, Index, settings_digest
from flowers_pl.data.cache_list import cached_sets, clear_cache
from flowers_pl.data.cache_shards import read_thumbs
from flowers_pl.data.decoding import UnreadablePhoto, load_photo, read_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.duplicates import fingerprint
from flowers_pl.data.folder import list_photos

SIZE = 32
SMALL_SHARD = 4


def draw(file: Path, number: int) -> None:
    draw_flower("rose", number, 40).save(file)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten photos of two classes and one file that is none, in shards of four."""
    monkeypatch.setattr(cache_index, "SHARD", SMALL_SHARD)
    for number in range(10):
        folder = tmp_path / "set" / ("daisy" if number < 5 else "rose")
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / f"{number}.png", number)
    (tmp_path / "set" / "rose" / "text.jpg").write_text("no picture")
    return tmp_path / "set"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the files that were decoded, in one process."""
    lengths: list[int] = []

    def count(data: bytes) -> Any:
        lengths.append(len(data))
        return read_photo(data)

    monkeypatch.setattr(decode_workers, "read_photo", count)
    return lengths


def decode(root: Path, **options: object) -> DecodedPhotos:
    given: dict[str, Any] = {"cache_dir": root.parent / "cache", "workers": 0, **options}
    return decode_photos(root, list_photos(root), SIZE, **given)


def check(found: DecodedPhotos, root: Path) -> None:
    """Compare all that the cache gives with what the files give."""
    assert [one.path for one in found.photos] == [
        one.path for one in list_photos(root) if one.path != "rose/text.jpg"
    ]
    expected = [load_photo(root / one.path, SIZE).permute(1, 2, 0).numpy() for one in found.photos]
    np.testing.assert_array_equal(found.pixels[found.rows], expected)
    prints = [fingerprint(read_photo(root / one.path)) for one in found.photos]
    assert found.digests == [one.digest for one in prints]
    assert found.phashes.tolist() == [one.phash for one in prints]
    np.testing.assert_array_equal(found.thumbs, [one.thumb for one in prints])
    assert [(one.path, "not a picture" in one.reason) for one in found.left_out] == [("rose/text.jpg", True)]
    assert not found.may_pass


def add_three(root: Path) -> None:
    for number in (20, 21, 22):
        draw(root / "daisy" / f"{number}.png", number)


def remove_two(root: Path) -> None:
    for name in ("daisy/1.png", "rose/9.png"):
        (root / name).unlink()


def rename(root: Path) -> None:
    (root / "daisy" / "0.png").rename(root / "rose" / "zero.png")
    (root / "rose").rename(root / "tulip")
    (root / "tulip").rename(root / "rose")


def change_one(root: Path) -> None:
    draw(root / "daisy" / "0.png", 30)


def touch_all(root: Path) -> None:
    for file in root.glob("*/*.png"):
        os.utime(file, (1, 1))


def copy_over(root: Path) -> None:
    shutil.copy(root / "daisy" / "0.png", root / "rose" / "8.png")


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("change", "num_decodes"),
    [(add_three, 3), (remove_two, 0), (rename, 0), (change_one, 1), (touch_all, 0), (copy_over, 0)],
)
def test_only_what_is_new_is_decoded(
    root: Path, decodes: list[int], change: Callable[[Path], None], num_decodes: int, keep: bool
) -> None:
    check(decode(root, keep=keep), root)
    assert len(decodes) == 11
    decodes.clear()
    change(root)
    found = decode(root, keep=keep)
    assert len(decodes) == num_decodes
    check(found, root)
    decodes.clear()
    assert decode(root, keep=keep).photos == found.photos
    assert decodes == []


def test_a_photo_that_comes_back_is_known(root: Path, decodes: list[int]) -> None:
    decode(root)
    (root / "daisy" / "0.png").rename(root.parent / "0.png")
    decode(root)
    (root.parent / "0.png").rename(root / "daisy" / "0.png")
    check(decode(root), root)
    assert len(decodes) == 11


def test_two_workers_write_to_several_shards(root: Path) -> None:
    check(decode(root, workers=2), root)
    add_three(root)
    check(decode(root, workers=2), root)


def test_shards_only_grow(root: Path) -> None:
    entry = decode(root).folder
    assert entry is not None
    before = {file.name: file.read_bytes() for file in entry.glob("*-*")}
    assert len(before) == 6  # three shards, of 4, 4 and 3 photos
    add_three(root)
    decode(root)
    for name, content in before.items():
        assert (entry / name).read_bytes().startswith(content)
    assert len(list(entry.glob("pixels-*"))) == 4


def test_rows_of_removed_photos_are_dropped_when_they_prevail(root: Path, decodes: list[int]) -> None:
    first = decode(root)
    assert first.folder is not None
    pixels = first.pixels[first.rows]
    first_shards = {file.name for file in first.folder.glob("pixels-*")}
    for name in ("daisy/0.png", "daisy/1.png", "daisy/2.png", "rose/9.png"):
        (root / name).unlink()
    found = decode(root)
    check(found, root)
    shards = list(first.folder.glob("pixels-*"))
    assert sum(file.stat().st_size for file in shards) == (4 + 2) * SIZE * SIZE * 3  # 4 to 7; 3 and 8
    assert len(first_shards & {file.name for file in shards}) == 1
    np.testing.assert_array_equal(first.pixels[first.rows], pixels)  # a process that reads goes on
    assert len(decodes) == 11


def test_files_of_others_stay_with_the_entry(root: Path) -> None:
    entry = decode(root).folder
    assert entry is not None
    (entry / "pairs.npy").write_bytes(b"of another part")
    remove_two(root)
    add_three(root)
    assert decode(root).folder == entry
    assert (entry / "pairs.npy").read_bytes() == b"of another part"
    assert main(["cache", "--data.cache_dir", str(entry.parent), "--clear"]) == 0
    assert not entry.exists()


@pytest.mark.parametrize("kind", ["pixels", "thumbs"])
@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_of_a_damaged_shard_only_its_photos_are_decoded(
    root: Path, decodes: list[int], kind: str, damage: str
) -> None:
    found = decode(root)
    assert found.folder is not None
    index = Index.read(found.folder, settings_digest(SIZE))
    assert index is not None
    file = found.folder / f"{kind}-{index.shards[1]}"
    content = file.read_bytes()
    file.unlink()
    if damage == "torn":
        file.write_bytes(content[:-1])
    decodes.clear()
    check(decode(root), root)
    assert len(decodes) == SMALL_SHARD


def test_a_changed_byte_of_the_index_is_noticed(root: Path) -> None:
    entry = decode(root).folder
    assert entry is not None
    settings, content = settings_digest(SIZE), (entry / INDEX).read_bytes()
    expected = vars(Index.read(entry, settings))
    for place in range(len(content)):
        (entry / INDEX).write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        found = Index.read(entry, settings)
        for name, value in vars(found).items() if found is not None else ():  # some bytes mean nothing
            np.testing.assert_array_equal(value, expected[name])
    (entry / INDEX).write_bytes(content[:100] + bytes([content[100] ^ 0x55]) + content[101:])
    check(decode(root), root)


def test_an_index_that_cannot_be_read_now_is_not_thrown_away(
    root: Path, monkeypatch: pytest.MonkeyPatch, decodes: list[int]
) -> None:
    entry = decode(root).folder
    decodes.clear()
    real = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.name == INDEX:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(FlowersError, match="Input/output error"):
            decode(root)
    check(decode(root), root)
    assert (decode(root).folder, decodes) == (entry, [])


def test_the_layout_of_0_1_0_is_replaced(root: Path) -> None:
    entry = decode(root).folder
    assert entry is not None
    shutil.rmtree(entry)
    entry.mkdir()
    for name in ("table.json", "pixels.npy", "thumbs.npy"):
        (entry / name).write_bytes(b"{}")
    check(decode(root), root)
    assert {file.name.split("-")[0] for file in entry.iterdir()} == {"index.npz", "pixels", "thumbs", "used"}


def test_other_limits_are_another_cache(root: Path, decodes: list[int]) -> None:
    from flowers_pl.data.formats import Limits, set_limits

    decode(root)
    set_limits(Limits(max_pixels=1000))
    try:
        assert decode(root).photos == []
    finally:
        set_limits(Limits())
    check(decode(root), root)


# ---------------------------------------------------------------- other processes

OTHER = """
import os, signal, sys
from pathlib import Path
from flowers_pl.data import cache_index, cache_update, decode_workers
from flowers_pl.data.cache import decode_photos
from flowers_pl.data.folder import list_photos
root, folder, killed_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cache_index.SHARD = 4
read, count = decode_workers.read_photo, 0
def read_photo(data):
    global count
    count += 1
    if count == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(data)
decode_workers.read_photo = read_photo
decode_workers.CHUNK = 1
found = decode_photos(root, list_photos(root), 32, folder, workers=0)
print(count, len(found.photos), int(found.pixels[found.rows].sum()), flush=True)
"""


def another(root: Path, killed_at: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER, str(root), str(root.parent / "cache"), str(killed_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed_at", [pytest.param(2, marks=pytest.mark.release), 7, pytest.param(11, marks=pytest.mark.release)]
)
def test_a_killed_process_loses_its_shard_at_most(root: Path, decodes: list[int], killed_at: int) -> None:
    process = another(root, killed_at)
    assert process.wait() == -9
    check(decode(root), root)
    done = killed_at - 1
    assert len(decodes) == 11 - done // SMALL_SHARD * SMALL_SHARD


@pytest.mark.slow
def test_a_process_killed_while_it_adds_leaves_what_was_there(root: Path, decodes: list[int]) -> None:
    decode(root)
    add_three(root)
    assert another(root, 2).wait() == -9
    decodes.clear()
    check(decode(root), root)
    assert len(decodes) <= 3


@pytest.mark.slow
def test_what_a_killed_process_reserved_makes_room_for_the_rest(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert another(root, 7).wait() == -9  # three shards were reserved, and one of them is in the index
    (entry,) = (path for path in (root.parent / "cache").iterdir() if path.is_dir())
    assert len(list(entry.glob("pixels-*"))) == 3
    found: list[int] = []
    monkeypatch.setattr(
        "flowers_pl.data.cache_update.make_room",
        lambda entry, num_bytes, limit: found.append(len(list(entry.glob("pixels-*")))),
    )
    check(decode(root), root)
    assert found == [1]


def test_the_index_is_written_when_time_has_passed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_index, "SHARD", 8192)
    monkeypatch.setattr("flowers_pl.data.cache_update.PERIOD", 0.0)
    monkeypatch.setattr(decode_workers, "CHUNK", 1)
    count = iter(range(100))

    def interrupted(data: bytes) -> Any:
        if next(count) == 6:
            raise KeyboardInterrupt
        return read_photo(data)

    with monkeypatch.context() as patch:
        patch.setattr(decode_workers, "read_photo", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decode(root)
    monkeypatch.setattr(decode_workers, "read_photo", lambda data: (next(count), read_photo(data))[1])
    check(decode(root), root)
    assert next(count) == 7 + 5  # six were kept


@pytest.mark.slow
def test_processes_that_start_together_decode_once(root: Path) -> None:
    processes = [another(root) for _ in range(2)]
    counts, *others = zip(*(map(int, process.communicate()[0].split()) for process in processes), strict=True)
    assert sorted(counts) == [0, 11]
    assert all(len(set(values)) == 1 for values in others)


@pytest.mark.slow
def test_readers_are_never_disturbed(root: Path) -> None:
    """One process adds and removes photos, so that shards grow and are moved, while this one reads."""
    enough = root.parent / "enough"
    code = OTHER.rsplit("found =", 1)[0] + (
        "print('ready', flush=True)\n"
        "turn = 0\n"
        f"while turn < 12 or turn % 2 or (turn < 500 and not os.path.exists({str(enough)!r})):\n"
        "    for name in ('6', '7', '8', '9'):\n"
        "        (root / f'rose/{name}.png').rename(root / f'rose/.{name}.png') if turn % 2 == 0 else"
        " (root / f'rose/.{name}.png').rename(root / f'rose/{name}.png')\n"
        "    decode_photos(root, list_photos(root), 32, folder, workers=0)\n"
        "    turn += 1\n"
        "os._exit(0)\n"  # at once: no photo moves while libraries take leave
    )
    expected = decode(root)
    pixels = expected.pixels[expected.rows]
    of_path = dict(zip((one.path for one in expected.photos), pixels, strict=True))
    command = [sys.executable, "-c", code, str(root), str(root.parent / "cache"), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    seen: list[DecodedPhotos] = []
    counts: list[int] = []
    while process.poll() is None:
        try:
            seen.append(decode(root))
            counts.append(len(seen[-1].photos))
        except FlowersError as error:  # a photo was renamed after it was listed
            assert "empty" in str(error)  # noqa: PT017
        for found in seen[-5:]:
            for one, picture in zip(found.photos, found.pixels[found.rows], strict=True):
                np.testing.assert_array_equal(picture, of_path[one.path])
        if counts.count(6) > 3 and counts.count(10) > 3:
            enough.touch()
    assert process.returncode == 0
    assert enough.exists()  # this process has read in both states
    np.testing.assert_array_equal(expected.pixels[expected.rows], pixels)
    check(decode(root), root)


def test_an_entry_that_is_moved_while_it_is_loaded_is_loaded_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(root)
    real, calls = read_thumbs, list[Path]()

    def moved(entry: Path, index: Index) -> np.ndarray:
        calls.append(entry)
        if len(calls) == 1:
            raise FileNotFoundError(errno.ENOENT, "moved")
        return real(entry, index)

    monkeypatch.setattr("flowers_pl.data.cache.read_thumbs", moved)
    monkeypatch.setattr(decode_workers, "read_photo", lambda data: pytest.fail("decoded again"))
    check_only = decode(root)
    assert len(check_only.photos) == 10
    assert len(calls) == 2


def test_a_read_only_entry_is_read_and_then_replaced_by_an_own_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, decodes: list[int]
) -> None:
    """Root may write anywhere, so what another user's entry refuses is simulated."""
    entry = decode(root).folder
    decodes.clear()
    real = Path.touch

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        if self.parent == entry:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(self, *args, **options)

    monkeypatch.setattr(Path, "touch", refuse)
    check(decode(root), root)
    assert decodes == []
    add_three(root)
    found = decode(root)
    check(found, root)
    assert found.folder is not None
    assert found.folder.name.startswith(f"{entry and entry.name}-user")


def test_without_locks_a_shard_is_never_shared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(folder: Path) -> bool:
        return False

    for module in ("core.locks", "data.cache_folder", "data.cache_update"):
        monkeypatch.setattr(f"flowers_pl.{module}.has_locks", none)
    first = decode(root)
    assert first.folder is not None
    before = {file: file.read_bytes() for file in first.folder.glob("*-*")}
    add_three(root)
    found = decode(root)
    check(found, root)
    for file, content in before.items():
        assert file.read_bytes().rstrip(b"\0") == content.rstrip(b"\0")
    remove_two(root)
    check(decode(root), root)


# ---------------------------------------------------------------- a limit


def other_set(root: Path, name: str, last_used: float) -> Path:
    """Decode a copy of the photos, as if it had been used some time ago."""
    copy = root.parent / name
    shutil.copytree(root, copy)
    entry = decode(copy, cache_dir=root.parent / "cache").folder
    assert entry is not None
    for path in (entry, *entry.iterdir()):
        os.utime(path, (last_used, last_used))
    return entry


def test_what_was_not_used_for_longest_goes_first(root: Path) -> None:
    newer, older = other_set(root, "newer", time.time() - 100), other_set(root, "older", time.time() - 200)
    size = cached_sets(newer.parent)[0].num_bytes
    found = decode(root, limit=2.5 * size / cache_list.GB)
    assert found.folder is not None
    assert (newer.exists(), older.exists(), found.folder.exists()) == (True, False, True)
    held = Hold(newer)
    add_three(root)
    with pytest.raises(
        FlowersError, match=r"^--data.cache_limit: these photos and what is in use .* more than"
    ):
        decode(root, limit=1.5 * size / cache_list.GB)
    assert newer.exists()
    del held
    check(decode(root, limit=1.6 * size / cache_list.GB), root)
    assert not newer.exists()


def test_photos_that_may_be_read_another_time_do_not_end_a_run_whose_limit_is_reached(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passing(data: bytes) -> Any:
        raise UnreadablePhoto("for now", may_pass=True)

    with monkeypatch.context() as patch:
        patch.setattr(decode_workers, "read_photo", passing)
        assert decode(root, retry=True).may_pass
    assert not decode(root, retry=True, limit=1e-9).photos  # nothing can be added, and nothing was there


def test_an_entry_that_cannot_be_written_to_counts_as_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux's NFS locks a file for one process alone only through a descriptor that may write."""
    older, modes, real = other_set(root, "older", time.time() - 100), [], Path.open

    def open_noted(self: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
        modes.append(mode)
        if self.parent == older:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, mode, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_noted)
        assert clear_cache(older.parent) == []
    assert set(modes) == {"r+b"}
    assert older.exists()
    assert [one.path for one in clear_cache(older.parent)] == [older]


def test_a_root_of_a_very_long_name_has_an_entry(root: Path) -> None:
    long = root.with_name("向日葵" * 28)  # 252 bytes
    root.rename(long)
    found = decode(long, cache_dir=long.parent / "cache")
    assert found.folder is not None
    assert found.folder.name.startswith("向日葵")
    check(found, long)


def test_a_use_counts_as_one(root: Path) -> None:
    first = other_set(root, "first", time.time() - 200)
    second = other_set(root, "second", time.time() - 100)
    decode(root.parent / "first", cache_dir=first.parent)
    (size,) = {one.num_bytes for one in cached_sets(first.parent)}
    decode(root, limit=2.5 * size / cache_list.GB)
    assert (first.exists(), second.exists()) == (True, False)


def test_a_limit_holds_also_where_nothing_is_added(root: Path) -> None:
    older = other_set(root, "older", time.time() - 100)
    decode(root)
    decode(root, limit=1e-9)
    assert not older.exists()


def test_a_full_disk_is_cleared_of_what_is_not_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = other_set(root, "older", time.time() - 100)
    free = shutil.disk_usage(root)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=0 if older.exists() else 10**6))
    check(decode(root), root)
    assert not older.exists()
    add_three(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(FlowersError, match=r"^--data.cache_dir: .*No space left on device"):
        decode(root)


def test_what_is_being_built_is_not_removed(root: Path) -> None:
    older = other_set(root, "older", time.time() - 100)
    with entry_lock(older):
        decode(root)
        decode(root, limit=1e-9)
        assert older.exists()


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_that_is_none_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data.cache_limit", limit]) == 1
    assert "--data.cache_limit must be more than 0, not" in capsys.readouterr().err


# ---------------------------------------------------------------- the parts


def test_the_gather_is_that_of_one_array(root: Path) -> None:
    found = decode(root)
    assert found.folder is not None
    index = Index.read(found.folder, settings_digest(SIZE))
    assert index is not None
    files = [found.folder / f"pixels-{name}" for name in index.shards]
    whole = np.concatenate([np.fromfile(file, np.uint8) for file in files]).reshape(found.pixels.shape)
    rows = np.array([[9, 0, 4], [3, 3, 8]])
    np.testing.assert_array_equal(found.pixels[rows], whole[rows])
    assert found.pixels[rows[:0]].shape == (0, 3, SIZE, SIZE, 3)

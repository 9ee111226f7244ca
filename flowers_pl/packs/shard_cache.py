"""The shards of a remote pack that this machine keeps: bounded, whole, fetched by one process at a time.

Several processes share the folder. A file is named by its digest, so a pack that was replaced never mixes
with what is left of it. A process that reads a shard holds a shared lock on it, and nobody removes a shard
without an exclusive one. A shard is fetched under a lock of its own, while others that want it wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Lock

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import replacing, warn_once
from flowers_pl.core.locks import lock, take
from flowers_pl.core.room import reserve
from flowers_pl.packs.index import DIGEST, FileEntry
from flowers_pl.packs.remote import Store

NUM_LOCKS = 64
STAMPED = 2.0  # seconds between two notes that a shard is in use
SHARDS = "shards"  # the folder, inside a pack's
PART = ".part"  # ends the name of a file that is being fetched


class ShardCache:
    """A folder of files of a remote pack.

    Args:
        folder: of this pack alone.
        store: where missing files come from.
        limit: bytes that the shards may take.

    Raises:
        FlowersError: the folder cannot be made.
    """

    def __init__(self, folder: Path, store: Store, limit: int) -> None:
        self.folder, self.store, self.limit = folder, store, limit
        self.fetched = 0  # bytes, by this process
        self._stamps: dict[str, float] = {}
        self._lock = Lock()
        try:
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def path_of(self, entry: FileEntry, shard: bool = False) -> Path:
        """Return where a file is, or will be."""
        suffix = Path(entry.name).suffix
        return self.folder / (SHARDS if shard else "") / f"{entry.digest}{suffix}"

    def has(self, shard: FileEntry) -> bool:
        """Return whether a shard is here."""
        return _has_length(self.path_of(shard, shard=True), shard.num_bytes)

    def fetch(self, entry: FileEntry, shard: bool = False) -> Path:
        """Make sure that a file is there, whole, and return its path.

        Raises:
            FlowersError: it cannot be fetched, or not be written.
        """
        file = self.path_of(entry, shard)
        if _has_length(file, entry.num_bytes):
            return file
        try:
            with _lock_of(self.folder, entry.digest):
                if not _has_length(file, entry.num_bytes):
                    self._fetch(entry, file, shard)
        except OSError as error:
            raise self._unwritable(error) from error
        return file

    def _fetch(self, entry: FileEntry, file: Path, shard: bool) -> None:
        part = file.with_name(file.name + PART)
        try:
            if shard:
                self._make_room(entry, part)
            else:
                _reserve(part, entry.num_bytes)
            self.store.fetch(entry, part)
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        with self._lock:
            self.fetched += entry.num_bytes

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, such as the index, whole or not at all.

        Raises:
            FlowersError: it cannot be written.
        """
        try:
            with replacing(self.folder / name) as unfinished:
                unfinished.write_bytes(content)
        except OSError as error:
            raise self._unwritable(error) from error

    def forget(self, tables: Iterable[FileEntry]) -> None:
        """Remove the tables of a pack that this one has replaced.

        Args:
            tables: of this pack.
        """
        kept = {self.path_of(entry).name for entry in tables}
        for file in self.folder.iterdir():
            if DIGEST.fullmatch(file.stem) and file.name not in kept:
                with suppress(OSError):  # another user's: it takes room, and that is all
                    file.unlink()

    def touch(self, shards: Iterable[FileEntry]) -> None:
        """Note that shards will be needed soon."""
        for entry in shards:
            with suppress(OSError):  # it is not here
                os.utime(self.path_of(entry, shard=True))

    def stamp(self, entry: FileEntry, handle: int) -> None:
        """Note that a shard is in use: the one whose note is oldest is removed first."""
        now = time.monotonic()
        if now - self._stamps.get(entry.digest, -STAMPED) >= STAMPED:
            self._stamps[entry.digest] = now
            with suppress(OSError):  # another user's file
                os.utime(handle)

    def _make_room(self, entry: FileEntry, part: Path) -> None:
        """Reserve room for a shard, after removing those that were not used for longest."""
        with lock(self.folder / "room.lock"):
            there = {}
            for file in (self.folder / SHARDS).iterdir():
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    there[file] = (stat.st_mtime, stat.st_size)
            there.pop(part, None)
            room = self.limit - entry.num_bytes - sum(size for _, size in there.values())
            for file in sorted(there, key=lambda file: there[file]):
                if room >= 0:
                    break
                if remove_shard(file, entry.digest):
                    room += there[file][1]
            if room < 0:
                warn_once(
                    "%s: shards in use take more than --data.shard_cache_limit; raise it, or run one command"
                    " at a time on this pack.", str(self.folder),
                )  # fmt: skip
            _reserve(part, entry.num_bytes)

    def _unwritable(self, error: OSError) -> FlowersError:
        return FlowersError(
            f"--data.cache_dir: shards cannot be written to {str(self.folder)!r} ({reason_of(error)}); make"
            " room, lower --data.shard_cache_limit or choose another folder."
        )


def remove_shard(file: Path, fetched: str | None = None) -> bool:
    """Remove a shard that nobody reads, or what a killed process left of one; return whether it is gone.

    Args:
        file: in the folder `shards` of a pack's.
        fetched: digest of what this thread fetches, under a lock that may serve `file`, too.
    """
    if file.suffix == PART:
        if fetched is not None and _lock_number(file.name) == _lock_number(fetched):
            return False
        try:
            with _lock_of(file.parents[1], file.name, timeout=0):
                file.unlink(missing_ok=True)
            return True
        except TimeoutError:
            return False
    try:
        with file.open("r+b") as shard:  # NFS locks only what may be written to
            if unused := take(shard.fileno()):
                file.unlink(missing_ok=True)
            return unused
    except OSError as error:
        return isinstance(error, FileNotFoundError)


def _lock_of(folder: Path, name: str, timeout: float = -1) -> AbstractContextManager[object]:
    return lock(folder / f"{_lock_number(name):02d}.lock", timeout)


def _lock_number(name: str) -> int:
    return int(name[:8], 16) % NUM_LOCKS


def _has_length(file: Path, num_bytes: int) -> bool:
    try:
        return file.stat().st_size == num_bytes
    except FileNotFoundError:
        return False


def _reserve(file: Path, num_bytes: int) -> None:
    with file.open("wb") as stream:
        reserve(stream.fileno(), num_bytes)

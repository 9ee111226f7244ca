"""Read a pack by row, wherever its shards are."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.locks import hold
from flowers_pl.packs.index import (
    INDEX,
    LEFT_OUT,
    MAX_INDEX,
    PATHS,
    PHOTO,
    PHOTOS,
    PLACE,
    FileEntry,
    PackIndex,
    check_places,
    damaged,
    is_inside,
    load_table,
    parse_index,
    split_paths,
)
from flowers_pl.packs.remote import Store
from flowers_pl.packs.shard_cache import ShardCache

CHECKED = 60.0  # seconds after which a store is asked whether the pack is still the same
_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO would block


class Pack:
    """A pack of photos: its index, its tables, and the bytes of each photo.

    Args:
        folder: holds the pack or, of a remote one, what this machine keeps of it.
        cache: fetches what is missing of a remote pack; None for one that is here.

    Raises:
        FlowersError: the folder holds no pack, or one that contradicts itself.
    """

    def __init__(self, folder: Path, cache: ShardCache | None = None) -> None:
        self.folder, self.cache = folder, cache
        self.where = cache.store.address if cache is not None else str(folder)
        try:
            with (folder / INDEX).open("rb") as stream:
                content = stream.read(MAX_INDEX + 1)
        except OSError as error:
            raise damaged(self.where, f"{INDEX} cannot be read: {reason_of(error)}") from error
        self.digest = hashlib.sha256(content).hexdigest()
        self.index: PackIndex = parse_index(content, self.where)
        self._checked = time.monotonic()  # when the store had this index last

    def __len__(self) -> int:
        return self.index.num_photos

    @cached_property
    def table(self) -> np.ndarray:
        """The photos, sorted by path: (len(self),) of `PHOTO`."""
        table = load_table(self._file(PHOTOS), PHOTO, len(self), self.where)
        if len(table) and int(table["label"].max()) >= len(self.index.classes):
            raise damaged(self.where, f"{PHOTOS} names a class that the index lacks")
        return table

    @cached_property
    def paths(self) -> list[str]:
        """The photos' paths below the folder that was packed, sorted."""
        paths = split_paths(self._file(PATHS).read_bytes(), self.table["path"], self.where)
        sides = self.index.sides
        if sides and not all(path.partition("/")[0] in sides for path in paths):
            raise damaged(self.where, f"{PATHS} names a folder that is on no side of the split")
        return paths

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Path -> row."""
        return {path: row for row, path in enumerate(self.paths)}

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of the file that a photo was packed from, in hexadecimal digits; "" for none."""
        row = self.row_of.get(path)
        return "" if row is None else self.table["sha256"][row].tobytes().hex()

    @cached_property
    def labels(self) -> list[str]:
        """The class of each photo."""
        return [self.index.classes[label] for label in self.table["label"].tolist()]

    @cached_property
    def left_out(self) -> list[tuple[str, str, str]]:
        """The files that could not be read when the pack was made: path, class, reason."""
        try:
            found: Any = json.loads(self._file(LEFT_OUT).read_bytes())
            entries = [(path, label, reason) for path, label, reason in found]
            texts = all(isinstance(text, str) for entry in entries for text in entry)
            known = set(self.index.classes)
            if not texts or not all(is_inside(path) and label in known for path, label, _ in entries):
                raise ValueError("of another kind")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise damaged(self.where, f"{LEFT_OUT}: {error}"[:120]) from error
        return entries

    @property
    def listed(self) -> list[tuple[str, str]]:
        """Path and class of all files, those that were left out too, sorted."""
        readable = list(zip(self.paths, self.labels, strict=True))
        return sorted([*readable, *((path, label) for path, label, _ in self.left_out)])

    def places(self, series: str) -> np.ndarray:
        """Return where each photo of a series is: (len(self),) of `PLACE`, checked."""
        entry, shards = self.index.series[series]
        places = load_table(self._file(entry.name), PLACE, len(self), self.where)
        check_places(places, shards, series, self.where)
        return places

    def _file(self, name: str) -> Path:
        entry = next(entry for entry in self.index.files() if entry.name == name)
        if self.cache is not None:
            return self.cache.fetch(entry)
        file = self.folder / name
        if not file.is_file() or file.stat().st_size != entry.num_bytes:
            raise damaged(self.where, f"{name} has not the length that the index states")
        return file

    def shard_file(self, shard: FileEntry) -> Path:
        """Return the path of a shard, which is there unless it was removed for room since."""
        return self.folder / shard.name if self.cache is None else self.cache.fetch(shard, shard=True)

    def read_apart(self, shard: FileEntry, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Read parts of a shard from the store, where the whole shard is not worth fetching.

        A shard has one digest, so parts of it cannot be checked; that the pack is still the same can.

        Raises:
            FlowersError: it cannot be reached, is not as long as the index says, or is of another pack.
        """
        assert self.cache is not None
        if time.monotonic() > self._checked + CHECKED:
            if hashlib.sha256(self.cache.store.read_index(INDEX)).hexdigest() != self.digest:
                raise FlowersError(
                    f"--data.root: the pack at {self.where!r} was replaced during this run; put the old one"
                    " back and resume, or start again."
                )
            self._checked = time.monotonic()
        for offset, target in pieces:
            target[:] = self.cache.store.read(shard.name, offset, offset + len(target))

    def read(self, shard: FileEntry, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Read parts of a shard.

        Args:
            shard: as the index lists it.
            pieces: each an offset, and what to fill from there on.

        Raises:
            FlowersError: the shard is not there, or is not as long as the index says.
        """
        while True:
            file = self.shard_file(shard)
            try:
                handle = os.open(file, _OPEN)
                break
            except FileNotFoundError as error:
                if self.cache is None:
                    raise damaged(self.where, f"{shard.name} is missing") from error
            except OSError as error:
                raise FlowersError(
                    f"--data.root: {str(file)!r} cannot be read ({reason_of(error)}); fix this and resume."
                ) from error
        try:
            hold(handle)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size != shard.num_bytes:
                raise damaged(self.where, f"{shard.name} has not the length that the index states")
            if self.cache is not None:
                self.cache.stamp(shard, handle)
            for offset, target in pieces:
                if os.preadv(handle, [target], offset) != len(target):
                    raise damaged(self.where, f"{shard.name} ends too early")
        except OSError as error:
            raise FlowersError(
                f"--data.root: {str(file)!r} cannot be read ({reason_of(error)}); fix this and resume."
            ) from error
        finally:
            os.close(handle)


def fetch_pack(folder: Path, address: str, limit: int) -> Pack:
    """Open a remote pack: fetch its index, and its tables where they are not here yet.

    Args:
        folder: of this pack alone, on this machine.
        address: of the pack.
        limit: bytes that its shards may take here.

    Raises:
        FlowersError: it cannot be reached, is no pack, or cannot be written here.
    """
    store = Store(address)
    content = store.read_index(INDEX)
    index = parse_index(content, address)
    cache = ShardCache(folder, store, limit)
    for entry in index.files():
        cache.fetch(entry)
    if not (folder / INDEX).is_file() or (folder / INDEX).read_bytes() != content:
        cache.write(INDEX, content)
        cache.forget(index.files())
    return Pack(folder, cache)

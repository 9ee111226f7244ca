"""The shards of an entry of the cache: files of pixels and of thumbnails that only grow."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowers_pl.core.files import sync_file
from flowers_pl.core.room import reserve
from flowers_pl.data import cache_index
from flowers_pl.data.cache_index import Index, shard_lengths
from flowers_pl.data.duplicates import THUMB

PIXELS, THUMBS = "pixels", "thumbs"  # files are called so, with the name of their shard


class MappedPixels:
    """The pixels of all rows of an entry, mapped into memory.

    Args:
        entry: the folder.
        index: its index; rows that are added later are not seen.
        size: pixels a side.

    Attributes:
        shape: (number of rows, size, size, 3).

    Raises:
        OSError, ValueError: a shard is missing or torn.
    """

    def __init__(self, entry: Path, index: Index, size: int) -> None:
        self.shape = (index.num_rows, size, size, 3)
        self._length, self._width = cache_index.SHARD, size * size * 3
        self._shards = [
            np.memmap(entry / f"{PIXELS}-{name}", np.uint8, "r", shape=(length, self._width))
            .view(np.ndarray)  # of which taking a row is faster
            for name, length in zip(index.shards, shard_lengths(index.num_rows), strict=True)
        ]  # fmt: skip

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Read photos by their rows, int64 of any shape: uint8 (*rows.shape, size, size, 3)."""
        wanted = np.asarray(rows)
        if len(self._shards) == 1:
            return self._shards[0].take(wanted, axis=0).reshape(*wanted.shape, *self.shape[1:])
        pixels = np.empty((wanted.size, self._width), np.uint8)
        for place, row in enumerate(wanted.ravel().tolist()):
            pixels[place] = self._shards[row // self._length][row % self._length]
        return pixels.reshape(*wanted.shape, *self.shape[1:])


def read_thumbs(entry: Path, index: Index) -> np.ndarray:
    """Read the thumbnails of all rows: uint8 (M, THUMB, THUMB).

    Raises:
        OSError, ValueError: a shard is missing or torn.
    """
    thumbs = np.empty((index.num_rows, THUMB, THUMB), np.uint8)
    for number, (name, length) in enumerate(zip(index.shards, shard_lengths(index.num_rows), strict=True)):
        stored = np.fromfile(entry / f"{THUMBS}-{name}", np.uint8, length * THUMB * THUMB)
        start = number * cache_index.SHARD
        thumbs[start : start + length] = stored.reshape(length, THUMB, THUMB)
    return thumbs


def torn_shards(entry: Path, index: Index, size: int) -> list[int]:
    """Return the numbers of the shards whose files are missing or too short.

    Args:
        entry: the folder.
        index: its index.
        size: pixels a side; 0 where no pixels are kept.
    """
    return [
        number
        for number, (name, length) in enumerate(zip(index.shards, shard_lengths(index.num_rows), strict=True))
        for kind, width in _files(size)
        if _length(entry / f"{kind}-{name}") < length * width
    ]


def _files(size: int) -> list[tuple[str, int]]:
    """Return the kinds of files of a shard, each with the bytes of a row."""
    return [(THUMBS, THUMB * THUMB), *([(PIXELS, 3 * size * size)] if size else [])]


def _length(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def row_bytes(size: int) -> int:
    """Return the bytes that a row takes, with its line in the index.

    Args:
        size: pixels a side; 0 where no pixels are kept.
    """
    return sum(width for _, width in _files(size)) + 4 * cache_index.DIGEST


class RowWriter:
    """Appends rows to the shards of an entry. Nobody sees them before they are in its index.

    Args:
        entry: the folder.
        index: its index, whose rows stay as they are.
        num_rows: how many will be added; room for them is reserved now.
        size: pixels a side; 0 where no pixels are kept.
        alone: whether no other process writes to this entry; otherwise the last shard is left as it is, and
            the first row is that of a new one.

    Attributes:
        first: number of the first row that is added.
        shards: the names of all shards.

    Raises:
        OSError: there is no room.
    """

    def __init__(self, entry: Path, index: Index, num_rows: int, size: int, alone: bool) -> None:
        self.entry, self.size, self.length = entry, size, cache_index.SHARD
        old, length = index.num_rows, self.length
        self.first = old if alone or not num_rows else -(-old // length) * length
        lengths = shard_lengths(self.first + num_rows)
        added = [secrets.token_hex(4) for _ in lengths[len(index.shards) :]]
        self.shards = [*index.shards, *added]
        for number in range(old // length, len(lengths)):
            for kind, width in _files(size):
                file = entry / f"{kind}-{self.shards[number]}"
                with file.open("ab" if number >= len(index.shards) else "r+b") as stream:
                    if (number + 1) * length > self.first:
                        reserve(stream.fileno(), lengths[number] * width)
                    else:  # rows that are skipped, which take no room
                        os.truncate(stream.fileno(), length * width)

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Write the pixels of a row, uint8 (size, size, 3); any process may.

        Raises:
            OSError: they cannot be written.
        """
        self._write(PIXELS, row, pixels)

    def write_thumb(self, row: int, thumb: np.ndarray) -> None:
        """Write the thumbnail of a row, uint8 (THUMB, THUMB).

        Raises:
            OSError: it cannot be written.
        """
        self._write(THUMBS, row, thumb)

    def _write(self, kind: str, row: int, content: np.ndarray) -> None:
        shard, place = divmod(row, self.length)
        with (self.entry / f"{kind}-{self.shards[shard]}").open("r+b") as file:
            file.seek(place * content.nbytes)
            file.write(np.ascontiguousarray(content).data)

    def sync(self, first: int, end: int) -> None:
        """Bring rows to the disk, so that an index that names them is true after a power failure, too.

        Raises:
            OSError: they cannot be written.
        """
        for number in range(first // self.length, -(-end // self.length)):
            for kind, _ in _files(self.size):
                sync_file(self.entry / f"{kind}-{self.shards[number]}")


def remove_shards(entry: Path, kept: Sequence[str], older_than: float = float("inf")) -> None:
    """Remove the files of all shards but some, and what a killed process left of an index.

    Args:
        entry: the folder.
        kept: names of shards.
        older_than: only files that were changed before this time, in seconds since 1970.
    """
    files = {f"{kind}-{name}" for kind in (PIXELS, THUMBS) for name in kept}
    for pattern in (f"{PIXELS}-*", f"{THUMBS}-*", f".{Path(cache_index.INDEX).stem}-*"):
        for file in entry.glob(pattern):
            if file.name not in files and file.stat().st_mtime < older_than:
                file.unlink(missing_ok=True)

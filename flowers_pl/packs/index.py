"""The index of a pack: what its files hold, checked before anything is allocated or opened.

A pack is a folder, or a prefix of an object store:

    index.json          the format, the classes, and name, length and digest of every other file
    photos.npy          a row for each photo, sorted by path: fingerprint, its file's SHA-256, class, length
                        of its path
    paths.txt           all paths, one after the other, UTF-8
    left_out.json       files that could not be read: path, class, reason
    <series>.npy        where each photo is: shard, offset, length
    <series>-000000.tar shards

A series is `pixels-160` (uint8, RGB, decoded to 160 pixels a side) or `files` (the bytes of the original
files). A name is computed, never taken from a pack. Shards are ordinary tar files, which tarfile and the
library webdataset read; this program reads them by offset, and parses neither their headers nor their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowers_pl.core.errors import FlowersError

INDEX, PHOTOS, PATHS, LEFT_OUT = "index.json", "photos.npy", "paths.txt", "left_out.json"
FORMAT, VERSION = "flowers_pl pack", 2
FILES = "files"
PHOTO = np.dtype(
    [("digest", "u1", 16), ("sha256", "u1", 32), ("phash", "<u8"), ("thumb", "u1", (16, 16)),
     ("label", "<u4"), ("path", "<u2")]
)  # fmt: skip
PLACE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4")])
MAX_INDEX = 2**28  # bytes of an index: 3 million shards
MAX_SIZE = 4096  # pixels a side of decoded photos
MAX_SHARD = 2**34  # bytes
MAX_PHOTOS = 2**31
MAX_PATH = 4096  # bytes
SERIES = re.compile(r"files|pixels-([1-9]\d{1,3})")
DIGEST = re.compile(r"[0-9a-f]{64}")
LITDATA = {"chunks", "config"}


@dataclass(frozen=True)
class FileEntry:
    """What an index says of a file.

    Args:
        name: inside the pack.
        num_bytes: its length.
        digest: SHA-256 of its content, in hexadecimal digits.
    """

    name: str
    num_bytes: int
    digest: str


@dataclass(frozen=True)
class PackIndex:
    """What a pack says of itself.

    Args:
        num_photos: how many it holds.
        classes: names, sorted.
        sides: of folders train, val and test, where these are the split; see `folder.split_folders`.
        fingerprints: the version of their computation.
        tables: `PHOTOS`, `PATHS` and `LEFT_OUT`.
        series: name of each series -> the table of its places, and its shards.
    """

    num_photos: int
    classes: list[str]
    sides: dict[str, str]
    fingerprints: int
    tables: list[FileEntry]
    series: dict[str, tuple[FileEntry, list[FileEntry]]]

    def as_json(self) -> dict[str, Any]:
        """Return what `index.json` holds; names follow from what they name."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "photos": self.num_photos,
            "classes": self.classes,
            "sides": self.sides,
            "fingerprints": self.fingerprints,
            "tables": [[entry.num_bytes, entry.digest] for entry in self.tables],
            "series": {
                name: {"places": [places.num_bytes, places.digest],
                       "shards": [[shard.num_bytes, shard.digest] for shard in shards]}
                for name, (places, shards) in self.series.items()
            },
        }  # fmt: skip

    def files(self) -> Iterator[FileEntry]:
        """Yield all tables, those of places too, but no shards."""
        yield from self.tables
        yield from (places for places, _ in self.series.values())


def shard_name(series: str, number: int) -> str:
    """Return the name of a shard.

    >>> shard_name("pixels-160", 7)
    'pixels-160-000007.tar'
    """
    return f"{series}-{number:06d}.tar"


def pixels_series(size: int) -> str:
    """Return the name of the series of photos decoded to `size` pixels a side."""
    return f"pixels-{size}"


def size_of(series: str) -> int | None:
    """Return the pixels a side of a series; None for `FILES`."""
    found = SERIES.fullmatch(series)
    return int(found[1]) if found and found[1] else None


def parse_index(content: bytes, where: str) -> PackIndex:
    """Check an index, and return what it says.

    Args:
        content: of `index.json`.
        where: the pack, for the messages.

    Raises:
        FlowersError: it is not an index of this format and version, or one of its values is out of range.
    """
    try:
        found = json.loads(content) if len(content) <= MAX_INDEX else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and set(found) >= LITDATA:
        raise FlowersError(
            f"--data.root: {where!r} is in the format of litdata, whose chunks can run code when they are"
            " read (pickle); make a pack of the photos by 'python -m flowers_pl pack DIR OUT'."
        )
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FlowersError(f"--data.root: {where!r} is no pack of photos; {WAY_OUT}.")
    if found.get("version") != VERSION:
        raise FlowersError(
            f"--data.root: the pack {where!r} has format version {found.get('version')!r:.20}, and this"
            f" program reads version {VERSION}; {WAY_OUT}."
        )
    try:
        return _checked(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(where, f"index.json: {error}"[:120]) from error


WAY_OUT = "make one by 'python -m flowers_pl pack DIR OUT'"


def damaged(where: str, why: str) -> FlowersError:
    """Make the error about a pack that contradicts itself."""
    return FlowersError(f"--data.root: the pack {where!r} is damaged ({why}); restore it, or {WAY_OUT}.")


def _checked(found: dict[str, Any]) -> PackIndex:
    """Return an index whose every value has its type and range; raise ValueError, KeyError or TypeError."""
    classes, sides = found["classes"], found["sides"]
    texts = isinstance(classes, list) and all(
        isinstance(name, str) and name.isprintable() for name in classes
    )
    if not texts or classes != sorted(set(classes)):
        raise ValueError("classes")
    folders = isinstance(sides, dict) and all(is_inside(name) and "/" not in name for name in sides)
    if not folders or not set(sides.values()) <= {"train", "val", "test"}:
        raise ValueError("sides")
    if not isinstance(found["series"], dict) or not found["series"]:
        raise ValueError("series")
    series = {}
    for name, entry in found["series"].items():
        size = size_of(name)
        if not SERIES.fullmatch(name) or (size is not None and not 32 <= size <= MAX_SIZE):
            raise ValueError(f"series {name!r:.40} is none that this program reads")
        shards = [_entry(shard_name(name, number), one) for number, one in enumerate(entry["shards"])]
        if any(shard.num_bytes > MAX_SHARD for shard in shards):
            raise ValueError(f"a shard of {name} is too long")
        series[name] = (_entry(f"{name}.npy", entry["places"]), shards)
    tables = [_entry(name, one) for name, one in zip((PHOTOS, PATHS, LEFT_OUT), found["tables"], strict=True)]
    index = PackIndex(
        _number(found["photos"]), classes, sides, _number(found["fingerprints"]), tables, series
    )
    if index.num_photos > MAX_PHOTOS or tables[1].num_bytes > index.num_photos * MAX_PATH:
        raise ValueError("photos or paths")
    if tables[2].num_bytes > MAX_INDEX:
        raise ValueError(LEFT_OUT)
    for entry, kind in [(tables[0], PHOTO), *((places, PLACE) for places, _ in series.values())]:
        if not 0 < entry.num_bytes - index.num_photos * kind.itemsize <= 1024:  # the header of a .npy file
            raise ValueError(f"{entry.name} cannot hold {index.num_photos} photos")
    return index


def _entry(name: str, found: Any) -> FileEntry:
    num_bytes, digest = found
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"digest of {name}")
    return FileEntry(name, _number(num_bytes), digest)


def _number(found: Any) -> int:
    if type(found) is not int or not 0 <= found < 2**48:
        raise ValueError(f"{found!r:.20} is no number of photos or bytes")
    return found


def load_table(file: Path, kind: np.dtype, num_rows: int, where: str) -> np.ndarray:
    """Map a table into memory: (num_rows,) of a structured dtype.

    Raises:
        FlowersError: it is something else.
    """
    try:
        table = np.lib.format.open_memmap(file, mode="r")  # of a .npy alone, and without pickle
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        raise damaged(where, f"{file.name} cannot be read: {error}"[:120]) from error
    if table.dtype != kind or table.shape != (num_rows,):
        raise damaged(where, f"{file.name} is not the table that the index describes")
    return table


def check_places(places: np.ndarray, shards: list[FileEntry], series: str, where: str) -> None:
    """Check that every photo lies inside its shard.

    Raises:
        FlowersError: one does not, or has another length than its pixels.
    """
    lengths = np.array([shard.num_bytes for shard in shards], np.uint64)
    shard, offset, length = places["shard"], places["offset"], places["length"].astype(np.uint64)
    if len(places) == 0:
        return
    if not len(shards) or int(shard.max()) >= len(shards):
        raise damaged(where, f"{series}.npy names a shard that the index lacks")
    room = lengths[shard]
    if bool((offset > room).any()) or bool((length > room - np.minimum(offset, room)).any()):
        raise damaged(where, f"{series}.npy names a place outside its shard")
    size = size_of(series)
    if size is not None and bool((length != 3 * size**2).any()):
        raise damaged(where, f"{series}.npy has photos that are not of {size} pixels a side")


def split_paths(content: bytes, lengths: np.ndarray, where: str) -> list[str]:
    """Divide the paths, which follow each other, and check that each stays inside a folder.

    Args:
        content: of `PATHS`.
        lengths: uint16 (N,), in bytes.
        where: the pack, for the messages.

    Raises:
        FlowersError: they do not fit their lengths, or one leads outside.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    if (int(ends[-1]) if len(ends) else 0) != len(content):
        raise damaged(where, f"{PATHS} has not the length that {PHOTOS} states")
    starts = ends - lengths
    paths = [
        content[start:end].decode("utf-8", "surrogateescape")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    for path in paths:
        if not is_inside(path):
            raise damaged(where, f"the path {path!r:.60} leads outside")
    return paths


def is_inside(path: str) -> bool:
    """Return whether a path, with slashes, is relative and stays below where it starts.

    >>> [is_inside(path) for path in ("rose/1.jpg", "../1.jpg", "/1.jpg", "rose//1.jpg", "")]
    [True, False, False, False, False]
    """
    parts = path.split("/")
    return "\0" not in path and not any(part in ("", ".", "..") for part in parts)

"""A folder of photos -> a pack of them: decoded, or as they are, in tar shards with an index."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import replacing_folder
from flowers_pl.core.paths import check_writable
from flowers_pl.core.room import reserve
from flowers_pl.core.text import printable
from flowers_pl.data.decode_workers import Unreadable, content_digest, decode_rows
from flowers_pl.data.duplicates import FINGERPRINTS, Fingerprint
from flowers_pl.data.folder import UNREADABLE, LeftOut, Photo, list_photos, split_folders
from flowers_pl.data.formats import UnreadablePhoto
from flowers_pl.data.sources import read_bytes
from flowers_pl.packs.index import (
    FILES,
    INDEX,
    LEFT_OUT,
    MAX_SIZE,
    PATHS,
    PHOTO,
    PHOTOS,
    PLACE,
    PackIndex,
    pixels_series,
    size_of,
)
from flowers_pl.packs.roots import find_pack
from flowers_pl.packs.writer import ShardWriter, entry_of, npy_bytes, write_table

log = logging.getLogger(__name__)
GROUP_BYTES = 2**28  # of decoded photos between decoding and their shards
SHARD_BYTES = 2**25


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Args:
        num_photos: how many.
        num_bytes: of all shards.
        num_shards: how many.
        left_out: files that could not be read.
    """

    num_photos: int
    num_bytes: int
    num_shards: int
    left_out: list[LeftOut]


class _Rows:
    """What is known of each listed file while a pack is made.

    Args:
        num_files: how many are listed.
        series: names of the series.

    Attributes:
        table: (num_files,) of `PHOTO`, but for the columns `label` and `path`.
        readable: bool (num_files,).
        unreadable: row -> reason.
        places: for each series (num_files,) of `PLACE`.
    """

    def __init__(self, num_files: int, series: Sequence[str]) -> None:
        self.table, self.readable = np.zeros(num_files, PHOTO), np.zeros(num_files, bool)
        self.unreadable: dict[int, str] = {}
        self.places = {name: np.zeros(num_files, PLACE) for name in series}

    def note(self, row: int, found: Fingerprint, content: bytes) -> None:
        """Note the fingerprint of a file, and the digest of its content."""
        digest = np.frombuffer(bytes.fromhex(found.digest), np.uint8)
        sha256 = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        self.table[row] = (digest, sha256, found.phash, found.thumb, 0, 0)
        self.readable[row] = True

    def agrees(self, row: int, found: Fingerprint) -> bool:
        """Return whether a file was decoded to these pixels before."""
        return bool(self.table["digest"][row].tobytes() == bytes.fromhex(found.digest))


def pack_folder(
    root: Path,
    out: Path,
    sizes: Sequence[int] = (),
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Packed:
    """Make a pack of a folder of class folders.

    Shards hold photos of all classes, in an order of their own, so that a few shards are a fair sample. The
    pack appears whole or not at all.

    Args:
        root: the folder.
        out: the folder of the pack, empty or not there yet.
        sizes: pixels a side, for each series of decoded photos; none for the bytes of the files.
        workers: processes that decode; None for as many as there are cores, 0 for this one.
        shard_bytes: of a full shard, about.

    Raises:
        FlowersError: the folder is not usable, or the pack cannot be written.
    """
    out = out.resolve()
    _check(root, out, sizes, workers)
    photos = list_photos(root, "--root")
    order = np.argsort(np.random.Philox(key=0).random_raw(len(photos)), kind="stable")
    series = [pixels_series(size) for size in sizes] or [FILES]
    rows = _Rows(len(photos), series)
    try:
        with replacing_folder(out) as folder:
            writers = {name: ShardWriter(folder, name, shard_bytes) for name in series}
            for group in _groups(order, max(sizes, default=160)):
                for writer in writers.values():
                    _write_group(root, photos, group, writer, rows, workers)
            for writer in writers.values():
                writer.close()
            index = _write_tables(folder, root, photos, rows, writers)
            (folder / INDEX).write_text(json.dumps(index.as_json()))
    except OSError as error:
        raise FlowersError(
            f"--out: the pack cannot be written to {str(out)!r} ({reason_of(error)}); make room or choose"
            " another folder."
        ) from error
    shards = [shard for writer in writers.values() for shard in writer.shards]
    left_out = [LeftOut(photos[row].path, why, UNREADABLE) for row, why in sorted(rows.unreadable.items())]
    return Packed(int(rows.readable.sum()), sum(shard.num_bytes for shard in shards), len(shards), left_out)


def _check(root: Path, out: Path, sizes: Sequence[int], workers: int | None) -> None:
    if workers is not None and workers < 0:
        raise FlowersError(f"--workers must be 0 or more, not {workers}.")
    for size in sizes:
        if not 32 <= size <= MAX_SIZE:
            raise FlowersError(f"--image_size and --stored_size must be from 32 to {MAX_SIZE}, not {size}.")
    if find_pack(root) is not None:
        raise FlowersError(f"--root: {str(root)!r} is a pack already; give a folder of photos.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FlowersError(f"--out: {str(out)!r} is not an empty folder; choose another.")
    if out.is_mount() or out == Path.cwd():
        raise FlowersError(f"--out: {str(out)!r} cannot be replaced as a whole; name a new folder inside it.")
    if out.is_relative_to(root.resolve()):
        raise FlowersError(
            f"--out: {str(out)!r} is inside --root, where it would count as photos; choose another."
        )
    check_writable(out, "--out")
    for left in out.parent.glob(f".{out.name}-????????"):
        log.warning("%s is left of a 'pack' that was killed, or is under way; remove it if not.", left)


def _groups(order: np.ndarray, size: int) -> Iterator[list[int]]:
    """Divide the files into groups whose decoded photos fit `GROUP_BYTES`."""
    step = max(64, GROUP_BYTES // (3 * size**2))
    for start in range(0, len(order), step):
        yield order[start : start + step].tolist()


def _write_group(
    root: Path,
    photos: Sequence[Photo],
    group: Sequence[int],
    writer: ShardWriter,
    rows: _Rows,
    workers: int | None,
) -> None:
    """Decode some photos and write them to a series, in the order of the group."""
    size, members = size_of(writer.series), [photos[row] for row in group]
    first = writer.series == next(iter(rows.places))
    scratch = writer.folder / "decoding.npy"
    if size is not None:
        shape = (len(group), size, size, 3)
        np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=shape).flush()
        with scratch.open("r+b") as file:
            reserve(file.fileno(), scratch.stat().st_size)
    write = None if size is None else partial(_write_pixels, scratch)
    decoded = list(decode_rows(root, members, size or 32, write, 0, workers))
    pixels = None if size is None else np.load(scratch, mmap_mode="r")
    for place, row in enumerate(group):
        digest, one = decoded[place]
        if first and isinstance(one, Unreadable):
            rows.unreadable[row] = one.reason
        if row in rows.unreadable:
            continue
        source = _file_bytes(root, photos[row], digest) if first else b""
        if first and not isinstance(one, Unreadable):
            rows.note(row, one, source)
        if isinstance(one, Unreadable) or not rows.agrees(row, one):
            raise _changed(root, photos[row])
        content = source if pixels is None else npy_bytes(pixels[place])
        suffix = _suffix(photos[row].path) if pixels is None else "npy"
        shard, start = writer.add(row, suffix, content, photos[row]._asdict())
        length = len(content) if pixels is None else pixels[place].nbytes
        rows.places[writer.series][row] = (shard, start + len(content) - length, length)
    scratch.unlink(missing_ok=True)


def _write_pixels(file: Path, row: int, pixels: np.ndarray) -> None:
    np.load(file, mmap_mode="r+")[row] = pixels


def _file_bytes(root: Path, photo: Photo, digest: bytes) -> bytes:
    """Return the bytes of a file, which are those that were decoded."""
    try:
        content = read_bytes(root / photo.path)
    except UnreadablePhoto as reason:
        raise _changed(root, photo) from reason
    if content_digest(content) != digest:
        raise _changed(root, photo)
    return content


def _changed(root: Path, photo: Photo) -> FlowersError:
    file = printable(str(root / photo.path))
    return FlowersError(f"--root: {file!r} changed while it was packed; start again.")


def _suffix(path: str) -> str:
    """Return the suffix of a file for its place in a shard, without the dot."""
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    return suffix if re.fullmatch(r"[a-z0-9]{1,5}", suffix) and suffix != "json" else "bin"


def _write_tables(
    folder: Path, root: Path, photos: Sequence[Photo], rows: _Rows, writers: dict[str, ShardWriter]
) -> PackIndex:
    """Write all tables of a pack, in the order of the paths; return its index."""
    classes = sorted({photo.label for photo in photos})
    number = {name: index for index, name in enumerate(classes)}
    readable = np.flatnonzero(rows.readable)
    members = [photos[row] for row in readable.tolist()]
    paths = [photo.path.encode("utf-8", "surrogateescape") for photo in members]
    table = rows.table[readable]
    table["label"] = [number[photo.label] for photo in members]
    table["path"] = [len(path) for path in paths]
    (folder / PATHS).write_bytes(b"".join(paths))
    left_out = [[photos[row].path, photos[row].label, why] for row, why in sorted(rows.unreadable.items())]
    (folder / LEFT_OUT).write_text(json.dumps(left_out))
    series = {
        name: (write_table(folder / f"{name}.npy", rows.places[name][readable]), writer.shards)
        for name, writer in writers.items()
    }
    tables = [write_table(folder / PHOTOS, table), entry_of(folder / PATHS), entry_of(folder / LEFT_OUT)]
    return PackIndex(len(readable), classes, split_folders(root), FINGERPRINTS, tables, series)

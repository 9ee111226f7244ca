"""The cache of decoded photos: their pixels at training size, mapped into memory, and their fingerprints."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import FULL, replacing, replacing_folder, warn_once
from flowers_pl.core.text import printable
from flowers_pl.data.cache_folder import (
    PIXELS,
    TABLE,
    THUMBS,
    Hold,
    default_cache_dir,
    entry_lock,
    remove_leftovers,
    reserve,
    temporary_cache_dir,
)
from flowers_pl.data.decode_workers import Unreadable, decode_rows
from flowers_pl.data.decoding import UnreadablePhoto, load_photo
from flowers_pl.data.duplicates import THUMB
from flowers_pl.data.folder import UNREADABLE, LeftOut, Photo
from flowers_pl.data.formats import get_limits

VERSION = 2  # of what `decoding.py` and `duplicates.py` compute: a change there needs a new number here


@dataclass(frozen=True)
class DecodedPhotos:
    """The readable photos of a folder, N of them, and the names of the others.

    Args:
        photos: the readable ones, sorted by path.
        rows: int64 (N,): the row of each in `pixels`.
        digests: of each, see `duplicates.Fingerprint`.
        phashes: uint64 (N,).
        thumbs: uint8 (N, THUMB, THUMB).
        left_out: files that could not be read, with the reason.
        pixels: uint8 (number of files, size, size, 3), RGB: a memory map, or what reads the files.
        may_pass: those of `left_out` whose fault may pass, by their rows.
        hold: keeps the cache in use.
        folder: of the entry of the cache; None for no cache.
    """

    photos: list[Photo]
    rows: np.ndarray
    digests: list[str]
    phashes: np.ndarray
    thumbs: np.ndarray
    left_out: list[LeftOut]
    pixels: np.ndarray | FilePixels
    may_pass: list[int]
    hold: Hold
    folder: Path | None = None

    def without(self, paths: Container[str]) -> DecodedPhotos:
        """Return the photos but for those of some paths."""
        rows = [row for row, photo in enumerate(self.photos) if photo.path not in paths]
        return replace(
            self,
            photos=[self.photos[row] for row in rows],
            left_out=[entry for entry in self.left_out if entry.path not in paths],
            digests=[self.digests[row] for row in rows],
            rows=self.rows[rows],
            phashes=self.phashes[rows],
            thumbs=self.thumbs[rows],
        )


class FilePixels:
    """Takes the place of the memory map without a cache: reads photos from their files each time.

    Args:
        root: the folder of class folders.
        photos: in the order of their rows.
        size: pixels a side.
    """

    def __init__(self, root: Path, photos: list[Photo], size: int) -> None:
        self.root, self.photos, self.shape = root, photos, (len(photos), size, size, 3)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Read photos by their rows: uint8 (N, size, size, 3).

        Raises:
            FlowersError: a photo can no longer be read.
        """
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for index, row in enumerate(rows):
            file = self.root / self.photos[row].path
            try:
                pixels[index] = load_photo(file, self.shape[1]).permute(1, 2, 0).numpy()
            except UnreadablePhoto as reason:
                raise FlowersError(
                    f"--data.root: {printable(str(file))!r} changed during the run ({reason}); restore it and"
                    " resume, or run with --data.cache true."
                ) from reason
        return pixels


def decode_photos(
    root: Path,
    photos: list[Photo],
    size: int,
    cache_dir: Path | None = None,
    workers: int | None = None,
    keep: bool = True,
    retry: bool = True,
) -> DecodedPhotos:
    """Decode all photos of a folder, or load them decoded from the cache.

    A folder has one cache for each size. It is rebuilt when a file was added, removed or changed (name,
    length, times of change), put in place as a whole, and built by one process at a time while others wait.
    A cache that another user built is read; where it cannot be replaced, this user gets another one.

    Args:
        root: the folder of class folders.
        photos: as `list_photos` found them there.
        size: pixels a side.
        cache_dir: folder of all caches; None for `default_cache_dir()`.
        workers: processes that decode; None for as many as there are cores, 0 for this one.
        keep: keep the pixels; otherwise only the fingerprints, and `FilePixels` reads the photos.
        retry: read photos again that could not be read because of a fault that may have passed.

    Raises:
        FlowersError: the cache cannot be written, or a worker was killed.
    """
    root = root.resolve()
    name = f"{root.name}-{_hash(str(root))[:12]}-{size}{'' if keep else '-unkept'}"
    cache = _Cache(root, photos, size, keep, workers)
    folder = cache_dir
    try:
        try:
            folder = cache_dir or default_cache_dir()
            return cache.find(folder, name, retry)
        except OSError as error:
            if cache_dir is not None or error.errno in FULL:
                raise
            folder = temporary_cache_dir()
            warn_once(
                "The default cache folder cannot be used (%s), so decoded photos are kept in %s;"
                " --data.cache_dir names another one.", str(error), str(folder),
            )  # fmt: skip
            return cache.find(folder, name, retry)
    except OSError as error:
        way_out = "choose another folder or give --data.cache false" if keep else "or choose another folder"
        raise FlowersError(
            f"--data.cache_dir: decoded photos cannot be written to {str(folder)!r} ({reason_of(error)});"
            f" make room, {way_out}."
        ) from error


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _state(file: Path) -> tuple[int, int, int]:
    """Return length and times of change, by which git's index, too, tells whether a file has changed."""
    try:
        stat = file.stat()
    except OSError:
        return (-1, 0, 0)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class _Cache:
    """Decoded photos of a folder: loaded, built, or completed; see `decode_photos`."""

    def __init__(self, root: Path, photos: list[Photo], size: int, keep: bool, workers: int | None) -> None:
        self.root, self.photos, self.size, self.keep, self.workers = root, photos, size, keep, workers
        states = [(photo.path, *_state(root / photo.path)) for photo in photos]
        self.key = _hash(repr((VERSION, size, get_limits(), states)))

    def find(self, cache_dir: Path, name: str, retry: bool) -> DecodedPhotos:
        """Load or build the entry of a name, or one of this user's own."""
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            return self.load_or_build(cache_dir / name, retry)
        except PermissionError:  # another user's, and it is out of date
            return self.load_or_build(cache_dir / f"{name}-user{getattr(os, 'getuid', int)()}", retry)

    def load_or_build(self, entry: Path, retry: bool) -> DecodedPhotos:
        """Load an entry; build it where there is none, and complete it where faults may have passed."""
        found = self._load(entry)
        if found is not None and not (retry and found.may_pass):
            return found
        try:
            with entry_lock(entry):
                remove_leftovers(entry)
                found = self._load(entry)  # another process may have built it meanwhile
                if found is None:
                    with replacing_folder(entry) as unfinished:
                        self._build(unfinished)
                elif retry and found.may_pass:
                    self._complete(entry, found.may_pass)
                found = self._load(entry)
        except OSError:
            if found is None:
                raise
        if found is None:
            raise OSError("it was removed while it was built")
        return found

    def _load(self, entry: Path) -> DecodedPhotos | None:
        """Load what is stored, or return None where that is nothing, or of other photos, or damaged."""
        try:
            hold = Hold(entry)
            table = json.load(hold.table)
            if table["key"] != self.key:
                return None
            pixels = np.load(entry / PIXELS, mmap_mode="r") if self.keep else self._file_pixels()
            thumbs = np.load(entry / THUMBS)
            if not os.path.samestat(os.fstat(hold.table.fileno()), (entry / TABLE).stat()):
                return None  # replaced meanwhile
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None
        rows = np.array([photo["row"] for photo in table["photos"]], dtype=np.int64)
        return DecodedPhotos(
            photos=[Photo(photo["path"], photo["label"]) for photo in table["photos"]],
            rows=rows,
            digests=[photo["digest"] for photo in table["photos"]],
            phashes=np.array([photo["phash"] for photo in table["photos"]], dtype=np.uint64),
            thumbs=thumbs[rows],
            left_out=[LeftOut(path, reason, UNREADABLE) for _, path, reason in table["left_out"]],
            pixels=pixels,
            may_pass=table["may_pass"],
            hold=hold,
            folder=entry,
        )

    def _file_pixels(self) -> FilePixels:
        return FilePixels(self.root, self.photos, self.size)

    def _build(self, folder: Path) -> None:
        if self.keep:
            shape = (len(self.photos), self.size, self.size, 3)
            np.lib.format.open_memmap(folder / PIXELS, mode="w+", dtype=np.uint8, shape=shape).flush()
            with (folder / PIXELS).open("rb+") as file:
                reserve(file.fileno(), os.fstat(file.fileno()).st_size)
        _save(folder / THUMBS, np.zeros((len(self.photos), THUMB, THUMB), np.uint8))
        (folder / TABLE).write_text(
            json.dumps({"key": self.key, "photos": [], "left_out": [], "may_pass": []})
        )
        self._complete(folder, range(len(self.photos)))

    def _complete(self, folder: Path, rows: Sequence[int]) -> None:
        """Decode photos and add them to what is stored; its table is written last."""
        table: dict[str, Any] = json.loads((folder / TABLE).read_text())
        thumbs = np.load(folder / THUMBS)
        again = set(rows)
        left_out = [entry for entry in table["left_out"] if entry[0] not in again]
        readable, may_pass = table["photos"], []
        pixels = folder / PIXELS if self.keep else None
        for row, found in decode_rows(self.root, self.photos, rows, self.size, pixels, self.workers):
            photo = self.photos[row]
            if isinstance(found, Unreadable):
                left_out.append([row, photo.path, found.reason])
                may_pass += [row] if found.may_pass else []
                continue
            thumbs[row] = found.thumb
            readable.append({**photo._asdict(), "row": row, "digest": found.digest, "phash": found.phash})
        table["photos"] = sorted(readable, key=lambda photo: int(photo["row"]))
        table |= {"left_out": sorted(left_out), "may_pass": may_pass}
        with replacing(folder / THUMBS) as file:
            _save(file, thumbs)
        with replacing(folder / TABLE) as file:
            file.write_text(json.dumps(table))


def _save(file: Path, array: np.ndarray) -> None:
    """Write an array as `np.save` does, whose own errors do not say that there is no room."""
    content = io.BytesIO()
    np.save(content, array)
    file.write_bytes(content.getvalue())

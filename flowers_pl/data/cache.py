"""The cache of decoded photos: their pixels at training size, mapped into memory, and their fingerprints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import FULL, warn_once
from flowers_pl.core.text import printable
from flowers_pl.data.cache_folder import (
    Hold,
    default_cache_dir,
    entry_lock,
    remove_leftovers,
    temporary_cache_dir,
)
from flowers_pl.data.cache_index import DIGEST, Index, photo_keys, settings_digest
from flowers_pl.data.cache_list import make_room
from flowers_pl.data.cache_shards import MappedPixels, read_thumbs
from flowers_pl.data.cache_update import Update
from flowers_pl.data.decoding import UnreadablePhoto, load_photo
from flowers_pl.data.folder import UNREADABLE, LeftOut, Photo

LONGEST = 150  # bytes of a root's name in that of its entry
ATTEMPTS = 3  # to load an entry: another process may move its rows at the same time


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
        pixels: gives uint8 (K, size, size, 3), RGB, for K rows; from a memory map, or from the files.
        may_pass: whether one of `left_out` may be read another time.
        hold: keeps the cache in use.
        folder: of the entry of the cache, for what else is to be kept as long as it; None for no cache.
    """

    photos: list[Photo]
    rows: np.ndarray
    digests: list[str]
    phashes: np.ndarray
    thumbs: np.ndarray
    left_out: list[LeftOut]
    pixels: MappedPixels | FilePixels
    may_pass: bool
    hold: Hold
    folder: Path | None = None

    def rows_of(self, paths: Iterable[str]) -> np.ndarray:
        """Return the rows of photos that could be read once, for example for another cache: int64 (K,).

        Raises:
            FlowersError: one of them could not be read this time.
        """
        row_of = dict(zip((photo.path for photo in self.photos), self.rows.tolist(), strict=True))
        wanted = list(paths)
        if missing := next((path for path in wanted if path not in row_of), None):
            reason = {entry.path: entry.reason for entry in self.left_out}.get(missing, "is gone")
            raise FlowersError(
                f"--data.root: {printable(missing)!r} could be read once but not again ({printable(reason)});"
                " restore it and start again."
            )
        return np.array([row_of[path] for path in wanted], dtype=np.int64)

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
    limit: float | None = None,
) -> DecodedPhotos:
    """Decode all photos of a folder, or load them decoded from the cache.

    A folder has one entry in the cache for each size. Only what is new to it is decoded: a file whose name,
    length and times of change are known is not opened, and one whose bytes are known is only compared.
    One process at a time adds to an entry while others wait, and those that read it are not disturbed. An
    entry that another user made is read; where it cannot be added to, this user gets another one.

    Args:
        root: the folder of class folders.
        photos: as `list_photos` found them there.
        size: pixels a side.
        cache_dir: folder of all caches; None for `default_cache_dir()`.
        workers: processes that decode; None for as many as there are cores, 0 for this one.
        keep: keep the pixels; otherwise only the fingerprints, and `FilePixels` reads the photos.
        retry: read photos again that could not be read because of a fault that may have passed.
        limit: GB that the folder of all caches may take; those that were not used for longest are removed,
            unless they are in use. None for as many as the disk has room for.

    Raises:
        FlowersError: the cache cannot be written, its limit is too small, or a worker was killed.
    """
    root = root.resolve()
    name = f"{_shortened(root.name)}-{_hash(str(root))[:12]}-{size}{'' if keep else '-unkept'}"
    cache = _Cache(root, photos, size, keep, workers, limit)
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


def _shortened(name: str) -> str:
    """Return the beginning of a name that leaves room for what is added: names have 255 bytes at most."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST else encoded[:LONGEST].decode(errors="ignore")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


class _Cache:
    """Decoded photos of a folder: loaded, or decoded as far as they are new; see `decode_photos`."""

    def __init__(
        self, root: Path, photos: list[Photo], size: int, keep: bool, workers: int | None, limit: float | None
    ) -> None:
        self.root, self.photos, self.size, self.keep = root, photos, size, keep
        self.workers, self.limit = workers, limit
        self.keys, self.settings = photo_keys(root, photos), settings_digest(size)

    def find(self, cache_dir: Path, name: str, retry: bool) -> DecodedPhotos:
        """Load or update the entry of a name, or one of this user's own."""
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            return self.load_or_update(cache_dir / name, retry)
        except PermissionError:  # another user's, and it lacks photos
            return self.load_or_update(cache_dir / f"{name}-user{getattr(os, 'getuid', int)()}", retry)

    def load_or_update(self, entry: Path, retry: bool) -> DecodedPhotos:
        """Load an entry; add to it what it lacks, and what could not be read because of a passing fault."""
        found = self._load(entry)
        if found is not None and not (retry and found.may_pass):
            if self.limit is not None:
                make_room(entry, 0, self.limit)
            return found
        try:
            with entry_lock(entry):
                remove_leftovers(entry)
                found = self._load(entry)  # another process may have updated it meanwhile
                if found is None or (retry and found.may_pass):
                    size = self.size if self.keep else 0
                    update = Update(entry, self.root, self.photos, self.keys, self.settings, size)
                    update.run(retry, self.workers, self.limit)
                    found = self._load(entry)
        except (OSError, FlowersError):  # what is there is whole; what could not be read stays left out
            if found is None:
                raise
        if found is None:
            raise OSError("it was removed while it was written")
        return found

    def _load(self, entry: Path) -> DecodedPhotos | None:
        """Load an entry, or return None where there is none, or one of other photos, or a damaged one."""
        for _ in range(ATTEMPTS):
            with suppress(OSError, ValueError):
                return self._open(entry)
        return None

    def _open(self, entry: Path) -> DecodedPhotos | None:
        hold = Hold(entry)
        index = Index.read(entry, self.settings)
        if index is None or not np.array_equal(index.keys, self.keys):
            return None
        thumbs = read_thumbs(entry, index)
        pixels = MappedPixels(entry, index, self.size) if self.keep else FilePixels(
            self.root, self.photos, self.size
        )  # fmt: skip
        if not hold.is_of_entry():
            raise FileNotFoundError("it was removed meanwhile")
        readable, unreadable = np.flatnonzero(index.rows >= 0), np.flatnonzero(index.rows < 0)
        rows = index.rows[readable]
        digests = index.digests[rows].tobytes().hex()
        left_out = [
            LeftOut(self.photos[place].path, index.reasons[-1 - index.rows[place]][0], UNREADABLE)
            for place in unreadable
        ]
        return DecodedPhotos(
            photos=[self.photos[place] for place in readable],
            rows=rows if self.keep else readable,
            digests=[digests[start : start + 2 * DIGEST] for start in range(0, len(digests), 2 * DIGEST)],
            phashes=index.phashes[rows],
            thumbs=thumbs[rows],
            left_out=left_out,
            pixels=pixels,
            may_pass=bool(index.may_pass(index.rows).any()),
            hold=hold,
            folder=entry,
        )

"""The cache of decoded photos: their pixels at training size, mapped into memory, and their fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import replacing_folder
from flowers_pl.core.signals import leave_signals_to_parent, signals_held
from flowers_pl.core.system import available_cores
from flowers_pl.core.text import printable
from flowers_pl.data.decoding import UnreadablePhoto, load_photo, read_photo, resize_photo
from flowers_pl.data.duplicates import THUMB, Fingerprint, fingerprint
from flowers_pl.data.folder import UNREADABLE, LeftOut, Photo

VERSION = 1  # of what `decoding.py` and `duplicates.py` compute: a change there needs a new number here
CHUNK = 16  # photos a worker decodes before it reports


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
    """

    photos: list[Photo]
    rows: np.ndarray
    digests: list[str]
    phashes: np.ndarray
    thumbs: np.ndarray
    left_out: list[LeftOut]
    pixels: np.ndarray | FilePixels


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/flowers_pl`, or `~/.cache/flowers_pl`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowers_pl"


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
) -> DecodedPhotos:
    """Decode all photos of a folder, or load them decoded from the cache.

    A folder has one cache for each size. It is rebuilt when a file was added, removed or changed (name,
    length, times of change), put in place as a whole, and built by one process at a time while others wait.

    Args:
        root: the folder of class folders.
        photos: as `list_photos` found them there.
        size: pixels a side.
        cache_dir: folder of all caches; None for `default_cache_dir()`.
        workers: processes that decode; None for as many as there are cores, 0 for this one.
        keep: keep the pixels; otherwise only the fingerprints, and `FilePixels` reads the photos.

    Raises:
        FlowersError: the cache cannot be written.
    """
    root = root.resolve()
    cache_dir = cache_dir or default_cache_dir()
    place = cache_dir / f"{root.name}-{_hash(str(root))[:12]}-{size}{'' if keep else '-unkept'}"
    key = _key(root, photos, size)
    unkept = None if keep else FilePixels(root, photos, size)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            decoded = _load(place, key, unkept)
            if decoded is None:
                _build(place, key, root, photos, size, workers, keep)
                decoded = _load(place, key, unkept)
    except OSError as error:
        raise FlowersError(
            f"--data.cache_dir: decoded photos cannot be written to {str(cache_dir)!r} ({reason_of(error)});"
            " choose another folder."
        ) from error
    assert decoded is not None
    return decoded


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _key(root: Path, photos: list[Photo], size: int) -> str:
    return _hash(repr((VERSION, size, [(photo.path, *_state(root / photo.path)) for photo in photos])))


def _state(file: Path) -> tuple[int, int, int]:
    """Return length and times of change, by which git's index, too, tells whether a file has changed."""
    try:
        stat = file.stat()
    except OSError:
        return (-1, 0, 0)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _load(place: Path, key: str, unkept: FilePixels | None) -> DecodedPhotos | None:
    """Load what is stored, or return None where that is nothing, or of other photos, or damaged."""
    try:
        table = json.loads((place / "table.json").read_text())
        if table["key"] != key:
            return None
        pixels = unkept or np.load(place / "pixels.npy", mmap_mode="r")
        thumbs = np.load(place / "thumbs.npy")
    except (OSError, ValueError, KeyError, EOFError):
        return None
    rows = np.array([photo["row"] for photo in table["photos"]], dtype=np.int64)
    return DecodedPhotos(
        photos=[Photo(photo["path"], photo["label"]) for photo in table["photos"]],
        rows=rows,
        digests=[photo["digest"] for photo in table["photos"]],
        phashes=np.array([photo["phash"] for photo in table["photos"]], dtype=np.uint64),
        thumbs=thumbs[rows],
        left_out=[LeftOut(path, reason, UNREADABLE) for path, reason in table["left_out"]],
        pixels=pixels,
    )


def _build(
    place: Path, key: str, root: Path, photos: list[Photo], size: int, workers: int | None, keep: bool
) -> None:
    with replacing_folder(place) as unfinished:
        pixels = unfinished / "pixels.npy" if keep else None
        if pixels is not None:
            shape = (len(photos), size, size, 3)
            np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=shape).flush()
        thumbs = np.zeros((len(photos), THUMB, THUMB), np.uint8)
        table: dict[str, object] = {"key": key, "photos": (readable := []), "left_out": (left_out := [])}
        for row, found in _decode_all(_Decoder(root, photos, size, pixels), workers):
            if isinstance(found, str):
                left_out.append([photos[row].path, found])
                continue
            thumbs[row] = found.thumb
            readable.append(
                {**photos[row]._asdict(), "row": row, "digest": found.digest, "phash": found.phash}
            )
        np.save(unfinished / "thumbs.npy", thumbs)
        (unfinished / "table.json").write_text(json.dumps(table))


class _Decoder(Dataset[list[tuple[int, Fingerprint | str]]]):
    """Decodes CHUNK photos an item straight into the memory map, if there is one, and returns their
    fingerprints, or why they cannot be read."""

    def __init__(self, root: Path, photos: list[Photo], size: int, pixels: Path | None) -> None:
        self.root, self.photos, self.size, self.pixels = root, photos, size, pixels

    def __len__(self) -> int:
        return -(-len(self.photos) // CHUNK)

    def __getitem__(self, chunk: int) -> list[tuple[int, Fingerprint | str]]:
        pixels = None if self.pixels is None else np.load(self.pixels, mmap_mode="r+")
        found: list[tuple[int, Fingerprint | str]] = []
        for row in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.photos))):
            try:
                photo = read_photo(self.root / self.photos[row].path)
            except UnreadablePhoto as reason:
                found.append((row, str(reason)))
                continue
            if pixels is not None:
                pixels[row] = resize_photo(photo, self.size).permute(1, 2, 0).numpy()
            found.append((row, fingerprint(photo)))
        return found


def _decode_all(decoder: _Decoder, workers: int | None) -> Iterator[tuple[int, Fingerprint | str]]:
    if workers is None:
        workers = min(available_cores(), len(decoder) // 4)
    loader = DataLoader(
        decoder,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=leave_signals_to_parent,
    )
    with signals_held():
        chunks = iter(loader)
    with tqdm(
        total=len(decoder.photos), desc="Decoding photos once", unit="photo", leave=False, disable=None
    ) as bar:
        for chunk in chunks:
            yield from chunk
            bar.update(len(chunk))


def _unchanged(
    chunk: list[tuple[int, Fingerprint | str]],
) -> list[tuple[int, Fingerprint | str]]:
    """Keep worker results from becoming tensors, which take a file descriptor each, and half of the time."""
    return chunk

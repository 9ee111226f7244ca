"""Find duplicates: photos with equal pixels, or with similar perceptual hashes and thumbnails."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image
from torch import Tensor

from flowers_pl.core.files import replacing
from flowers_pl.data.decoding import resize_photo
from flowers_pl.data.hash_search import NEAR_BITS
from flowers_pl.data.near_duplicates import NEAR_CORRELATION, NearPictures, connected

FINGERPRINTS = 1  # of what `decoding.py` and this file compute: a change there needs a new number here
THUMB = 16  # pixels a side
KEPT = "near.npz"  # in the folder of a cache entry: which photos are near
RULE = repr((1, NEAR_BITS, NEAR_CORRELATION)).encode()  # what another rule made is not used


class Fingerprint(NamedTuple):
    """What photos are compared by.

    Args:
        digest: of the decoded pixels and their shape; equal for equal pixels.
        phash: 64 bits, as an unsigned number (DCT of the grey picture; `imagehash.phash`).
        thumb: uint8 (THUMB, THUMB), grey.
    """

    digest: str
    phash: int
    thumb: np.ndarray


def fingerprint(photo: Tensor) -> Fingerprint:
    """Compute the fingerprint of a photo, uint8 (3, H, W)."""
    pixels = photo.permute(1, 2, 0).contiguous().numpy()
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()
    phash = int(str(imagehash.phash(Image.fromarray(pixels))), 16)
    thumb = resize_photo(photo, THUMB).float().mean(0).round().byte()
    return Fingerprint(digest, phash, thumb.numpy())


def duplicate_groups(
    digests: list[str], phashes: np.ndarray, thumbs: np.ndarray, folder: Path | None = None
) -> np.ndarray:
    """Put photos that are duplicates of each other, by way of others too, into one group.

    Photos are duplicates if their digests are equal or if they are near, see `near_duplicates.NearPictures`.
    With a folder, the groups of near ones are kept there, and photos are compared only if they are new or if
    their group has lost a photo, which may have held it together. The result is the same.

    Args:
        digests: of N photos.
        phashes: uint64 (N,).
        thumbs: uint8 (N, THUMB, THUMB).
        folder: of the entry of the cache that they are from.

    Returns:
        int64 (N,): each photo's group, named by the first photo in it.
    """
    first: dict[str, int] = {}
    same = np.array([first.setdefault(digest, photo) for photo, digest in enumerate(digests)], dtype=np.int64)
    near = _near(phashes, thumbs, folder)
    photos = np.arange(len(digests))
    return _first_of_each(connected(len(photos), np.tile(photos, 2), np.concatenate([same, near])))


def _near(phashes: np.ndarray, thumbs: np.ndarray, folder: Path | None) -> np.ndarray:
    """Put photos that are near to each other, by way of others too, into one group, named by one of them."""
    groups = np.arange(len(thumbs))
    levels = thumbs.reshape(len(thumbs), THUMB * THUMB)
    varied = np.flatnonzero(levels.min(1) < levels.max(1))  # others correlate with nothing
    names = _names(phashes, levels, varied)
    names, rows, number = np.unique(names, return_index=True, return_inverse=True)
    rows = varied[rows]
    stored, kept = _load(folder)
    if changed := not np.array_equal(stored, names):
        whole = ~np.isin(kept, kept[~np.isin(stored, names)])
        stored, kept = stored[whole], kept[whole]
    known = np.searchsorted(names, stored)
    near, fresh = np.arange(len(names)), np.ones(len(names), bool)
    near[known], fresh[known] = known[_first_of_each(kept)], False
    if fresh.any():
        near = _first_of_each(NearPictures(phashes[rows], levels, rows, near).search(fresh))
    if changed:
        _save(folder, names, near)
    groups[varied] = rows[near][number]
    return groups


def _first_of_each(groups: np.ndarray) -> np.ndarray:
    """Name each group by its first member: int64, of the same shape."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return first[number]


def _names(phashes: np.ndarray, levels: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Return 16 bytes for each photo that tell its hash and thumbnail from others, by this RULE."""
    hashes = phashes.astype("<u8")
    names = (
        hashlib.blake2b(
            hashes[photo].tobytes() + levels[photo].tobytes(), digest_size=16, person=RULE
        ).digest()
        for photo in photos.tolist()
    )
    return np.frombuffer(b"".join(names), dtype="S16")


def _load(folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Load what `_save` wrote; nothing where it did not, or where the file is damaged."""
    if folder is not None:
        with suppress(Exception), np.load(folder / KEPT) as kept:  # numpy raises many kinds for damaged files
            names, groups = kept["names"], kept["groups"]
            if names.dtype == "S16" and names.shape == groups.shape == (names.size,):
                return names, groups
    return np.array([], "S16"), np.array([], np.int64)


def _save(folder: Path | None, names: np.ndarray, groups: np.ndarray) -> None:
    """Keep the names, sorted, and the group of each; without room or permission nothing is kept."""
    if folder is not None and folder.is_dir():
        with suppress(OSError), replacing(folder / KEPT) as file:
            np.savez(file, names=names, groups=groups)

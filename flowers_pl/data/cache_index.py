"""The index of an entry of the cache: which photos it knows, and in which rows of which shards they are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flowers_pl.core.files import replacing
from flowers_pl.data.duplicates import FINGERPRINTS
from flowers_pl.data.folder import Photo
from flowers_pl.data.formats import get_limits

VERSION = 3  # of the files of an entry
SHARD = 8192  # rows of a full shard
DIGEST = 16  # bytes
INDEX = "index.npz"
UNKNOWN = np.iinfo(np.int64).min  # in the place of a row
SHARD_NAME = "[0-9a-f]{8}"


@dataclass(frozen=True)
class Index:
    """N photos, each with its row among M rows, or with the reason why it cannot be read.

    A row belongs to the bytes of a file, and only to them: photos of equal bytes may share one, and rows stay
    for some time when their photos are gone. Row r is number r % SHARD of the shard r // SHARD.

    Args:
        keys: uint8 (N, DIGEST), of the photos, see `photo_keys`.
        rows: int64 (N,); -1 - n where reasons[n] says why there is none.
        reasons: why photos cannot be read, and whether that may pass.
        contents: uint8 (M, DIGEST), digests of the bytes of files.
        digests: uint8 (M, DIGEST), see `duplicates.Fingerprint`.
        phashes: uint64 (M,).
        shards: the names of the shards.
    """

    keys: np.ndarray
    rows: np.ndarray
    reasons: list[tuple[str, bool]]
    contents: np.ndarray
    digests: np.ndarray
    phashes: np.ndarray
    shards: list[str]

    @property
    def num_rows(self) -> int:
        """How many rows there are, M."""
        return len(self.phashes)

    @classmethod
    def empty(cls) -> Index:
        """Return the index of nothing."""
        none = np.zeros((0, DIGEST), np.uint8)
        return cls(none, np.zeros(0, np.int64), [], none, none, np.zeros(0, np.uint64), [])

    @classmethod
    def read(cls, entry: Path, settings: bytes) -> Index | None:
        """Read the index of an entry; None where there is none, or one of other settings, or a damaged one.

        Args:
            entry: the folder.
            settings: see `settings_digest`.

        Raises:
            OSError: it cannot be read now.
        """
        try:
            content = (entry / INDEX).read_bytes()
        except FileNotFoundError:
            return None
        try:
            with np.load(io.BytesIO(content)) as stored:  # zipfile compares checksums
                if stored["settings"].tobytes() != settings:
                    return None
                reasons, shards = json.loads(stored["texts"].tobytes())
                keys, rows, contents, digests, phashes = (
                    stored[name] for name in ("keys", "rows", "contents", "digests", "phashes")
                )
                why = [(str(reason), bool(passes)) for reason, passes in reasons]
                index = cls(keys, rows, why, contents, digests, phashes, shards)
                return index if index._is_whole() else None
        except Exception:  # a damaged file makes zipfile and numpy raise almost anything
            return None

    def _is_whole(self) -> bool:
        return (
            self.keys.shape == (len(self.rows), DIGEST)
            and self.contents.shape == self.digests.shape == (self.num_rows, DIGEST)
            and len(self.shards) == len(shard_lengths(self.num_rows))
            and all(re.fullmatch(SHARD_NAME, name) for name in self.shards)
            and bool(((self.rows >= -len(self.reasons)) & (self.rows < self.num_rows)).all())
        )

    def write(self, entry: Path, settings: bytes) -> None:
        """Let this be the index of an entry, at once and as a whole.

        Raises:
            OSError: it cannot be written; the old one is as it was.
        """
        with replacing(entry / INDEX) as unfinished, unfinished.open("wb") as file:
            np.savez(
                file,
                settings=np.frombuffer(settings, np.uint8),
                texts=np.frombuffer(json.dumps([self.reasons, self.shards]).encode(), np.uint8),
                keys=self.keys,
                rows=self.rows,
                contents=self.contents,
                digests=self.digests,
                phashes=self.phashes,
            )

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of photos by their keys, uint8 (K, DIGEST): int64 (K,), UNKNOWN where none is."""
        row_of = dict(zip(_each(self.keys), self.rows.tolist(), strict=True))
        return np.array([row_of.get(key, UNKNOWN) for key in _each(keys)], dtype=np.int64)

    def find_contents(self, contents: Sequence[bytes]) -> np.ndarray:
        """Return rows by the digests of files' bytes: int64 (K,), UNKNOWN where none is."""
        row_of = {content: row for row, content in enumerate(_each(self.contents))}
        return np.array([row_of.get(content, UNKNOWN) for content in contents], dtype=np.int64)

    def may_pass(self, rows: np.ndarray) -> np.ndarray:
        """Return bool (K,): where photos could not be read for a reason that may pass."""
        return np.isin(rows, [-1 - number for number, (_, passes) in enumerate(self.reasons) if passes])

    def sparse_shards(self) -> list[int]:
        """Return the numbers of the shards of which more than half is of photos that are gone."""
        lengths = np.array(shard_lengths(self.num_rows), np.int64)
        living = np.bincount(np.unique(self.rows[self.rows >= 0]) // SHARD, minlength=len(lengths))
        return np.flatnonzero(2 * living < lengths).tolist()

    def without_shards(self, numbers: Sequence[int]) -> tuple[Index, np.ndarray]:
        """Forget some shards and the photos in them.

        Returns:
            The index, and int64 (M,): the new number of each row, UNKNOWN for those that are gone.
        """
        stays = ~np.isin(np.arange(self.num_rows) // SHARD, numbers)
        number = np.where(stays, np.cumsum(stays) - 1, UNKNOWN)
        rows = self.rows.copy()
        rows[rows >= 0] = number[rows[rows >= 0]]
        index = replace(
            self,
            keys=self.keys[rows != UNKNOWN],
            rows=rows[rows != UNKNOWN],
            contents=self.contents[stays],
            digests=self.digests[stays],
            phashes=self.phashes[stays],
            shards=[name for shard, name in enumerate(self.shards) if shard not in numbers],
        )
        return index, number


def settings_digest(size: int) -> bytes:
    """Return a digest of what decides the pixels and fingerprints of a file's bytes.

    Args:
        size: pixels a side.
    """
    return _digest(repr((VERSION, FINGERPRINTS, SHARD, size, get_limits())))


def photo_keys(root: Path, photos: Sequence[Photo]) -> np.ndarray:
    """Return digests of what tells that a photo has changed: uint8 (N, DIGEST).

    That is its path, and its file's length and times of change, by which git's index, too, tells it.

    Args:
        root: the folder of class folders.
        photos: as `list_photos` found them there.
    """
    folder = os.fspath(root)
    keys = b"".join(_digest(f"{photo.path}\0{_state(f'{folder}/{photo.path}')}") for photo in photos)
    return np.frombuffer(keys, np.uint8).reshape(-1, DIGEST)


def _state(file: str) -> tuple[int, int, int]:
    try:
        stat = os.stat(file)
    except OSError:
        return (-1, 0, 0)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=DIGEST).digest()


def _each(digests: np.ndarray) -> list[bytes]:
    whole = digests.tobytes()
    return [whole[start : start + DIGEST] for start in range(0, len(whole), DIGEST)]


def shard_lengths(num_rows: int) -> list[int]:
    """Return the number of rows in each shard: all but the last one are full."""
    return [min(SHARD, num_rows - start) for start in range(0, num_rows, SHARD)]

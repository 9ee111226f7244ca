"""Bring an entry of the cache up to date: decode what is new, forget what is gone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowers_pl.core.locks import has_locks
from flowers_pl.data import cache_index
from flowers_pl.data.cache_folder import LEFT_ALONE, USED, remove_entry
from flowers_pl.data.cache_index import UNKNOWN, Index, shard_lengths
from flowers_pl.data.cache_list import make_room
from flowers_pl.data.cache_shards import (
    MappedPixels,
    RowWriter,
    read_thumbs,
    remove_shards,
    row_bytes,
    torn_shards,
)
from flowers_pl.data.decode_workers import Unreadable, decode_rows, digest_files
from flowers_pl.data.folder import Photo

PERIOD = 10.0  # seconds of decoding after which the index is written, though the shard is not full yet


class Update:
    """An update of one entry.

    Args:
        entry: its folder, which need not be there; the caller holds its lock.
        root: the folder of class folders.
        photos: as `list_photos` found them there, N of them.
        keys: uint8 (N, DIGEST), theirs, see `photo_keys`.
        settings: see `settings_digest`.
        size: pixels a side; 0 to keep no pixels.
    """

    def __init__(
        self, entry: Path, root: Path, photos: Sequence[Photo], keys: np.ndarray, settings: bytes, size: int
    ) -> None:
        self.entry, self.root, self.photos, self.keys = entry, root, photos, keys
        self.settings, self.size = settings, size
        self.alone = has_locks(entry.parent)

    def run(self, retry: bool, workers: int | None, limit: float | None) -> None:
        """Update the entry.

        Photos that are known stay. The bytes of others are compared with those that are stored, if any are,
        and only what is new is decoded. The index is written whenever a shard is full, so a process that is
        killed loses no more than one.

        Args:
            retry: read photos again that could not be read because of a fault that may have passed.
            workers: see `decode_rows`.
            limit: see `make_room`.

        Raises:
            FlowersError: a worker was killed, or the limit allows no update.
            OSError: the entry cannot be written; what it holds stays.
        """
        index = self._begin()
        try:
            rows = index.find(self.keys)
            if retry:
                rows[index.may_pass(rows)] = UNKNOWN
            if index.num_rows and (new := np.flatnonzero(rows == UNKNOWN)).size:
                digests = digest_files(self.root, [self.photos[place] for place in new.tolist()], workers)
                rows[new] = index.find_contents(digests)
            index = self._decode(index, rows, workers, limit)
            if self.alone and (sparse := index.sparse_shards()):
                with suppress(OSError):  # no room: another time
                    self._compact(index, sparse)
        finally:
            self._clean()

    def _begin(self) -> Index:
        """Return what can be used of the entry's index; replace the entry where nothing can."""
        index = Index.read(self.entry, self.settings)
        if index is None:
            remove_entry(self.entry)
            index = Index.empty()
        else:
            self._clean()  # what a killed update had reserved may leave no room for this one
        self.entry.mkdir(exist_ok=True)
        (self.entry / USED).touch()
        return index.without_shards(torn_shards(self.entry, index, self.size))[0]

    def _clean(self) -> None:
        """Remove files of shards that the index does not name; the whole entry where there is no index."""
        with suppress(OSError):
            if (index := Index.read(self.entry, self.settings)) is None:
                remove_entry(self.entry)
            else:
                young = float("inf") if self.alone else time.time() - LEFT_ALONE
                remove_shards(self.entry, index.shards, young)

    def _decode(self, index: Index, rows: np.ndarray, workers: int | None, limit: float | None) -> Index:
        """Decode the photos whose row is UNKNOWN and write the index.

        Args:
            index: the one that is extended.
            rows: int64 (N,), of all photos; UNKNOWN ones are filled in.
            workers: see `decode_rows`.
            limit: see `make_room`.
        """
        unreadable = np.flatnonzero((rows < 0) & (rows != UNKNOWN))
        reasons = [index.reasons[-1 - row] for row in rows[unreadable].tolist()]
        rows[unreadable] = -1 - np.arange(len(unreadable))
        places = np.flatnonzero(rows == UNKNOWN).tolist()
        if places:
            make_room(self.entry, len(places) * row_bytes(self.size), limit)
        writer = RowWriter(self.entry, index, len(places), self.size, self.alone)
        end = saved = writer.first
        added = saved - index.num_rows + len(places)
        contents, digests, phashes = (
            np.concatenate([old, np.zeros((added, *old.shape[1:]), old.dtype)])
            for old in (index.contents, index.digests, index.phashes)
        )

        def save() -> Index:
            writer.sync(saved, end)
            known = rows != UNKNOWN
            extended = Index(
                self.keys[known], rows[known], reasons, contents[:end], digests[:end], phashes[:end],
                writer.shards[: len(shard_lengths(end))],
            )  # fmt: skip
            extended.write(self.entry, self.settings)
            return extended

        write, last = writer.write if self.size else None, time.monotonic()
        new = [self.photos[place] for place in places]
        for place, (content, found) in zip(
            places, decode_rows(self.root, new, self.size, write, end, workers) if new else (), strict=True
        ):
            if isinstance(found, Unreadable):
                reasons.append((found.reason, found.may_pass))
                rows[place] = -len(reasons)
            else:
                writer.write_thumb(end, found.thumb)
                rows[place] = end
                contents[end] = np.frombuffer(content or bytes(cache_index.DIGEST), np.uint8)
                digests[end] = np.frombuffer(bytes.fromhex(found.digest), np.uint8)
                phashes[end] = found.phash
            end += 1
            if end % cache_index.SHARD == 0 or time.monotonic() - last > PERIOD:
                save()
                saved, last = end, time.monotonic()
        return save()

    def _compact(self, index: Index, sparse: Sequence[int]) -> None:
        """Move the rows of photos that are left in some shards to new ones, and write the index."""
        living = np.unique(index.rows[index.rows >= 0])
        moved = living[np.isin(living // cache_index.SHARD, sparse)]
        rest, number = index.without_shards(sparse)
        writer = RowWriter(self.entry, rest, len(moved), self.size, alone=True)
        thumbs = read_thumbs(self.entry, index)
        pixels = MappedPixels(self.entry, index, self.size) if self.size else None
        for row, old in enumerate(moved, writer.first):
            writer.write_thumb(row, thumbs[old])
            if pixels is not None:
                writer.write(row, pixels[old])
        writer.sync(writer.first, writer.first + len(moved))
        number[moved] = writer.first + np.arange(len(moved))
        rows = index.rows.copy()
        rows[rows >= 0] = number[rows[rows >= 0]]
        contents, digests, phashes = (
            np.concatenate([kept, old[moved]])
            for kept, old in (
                (rest.contents, index.contents),
                (rest.digests, index.digests),
                (rest.phashes, index.phashes),
            )
        )
        compacted = replace(
            index, rows=rows, contents=contents, digests=digests, phashes=phashes, shards=writer.shards
        )
        compacted.write(self.entry, self.settings)

"""The pixels of a pack by row: shards are read, and prefetched as a loader's plan wants them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import Condition, Thread
from typing import Any

import numpy as np

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.decoding import UnreadablePhoto, load_photo
from flowers_pl.data.formats import get_limits
from flowers_pl.packs.index import FILES, damaged
from flowers_pl.packs.reader import Pack

FETCHERS = 4  # threads that fetch shards at the same time


@dataclass(eq=False)
class ReadingPlan:
    """Which shards a loader is going to read.

    Args:
        expected: numbers of shards.
        begun: those of which photos have been read.
    """

    expected: set[int]
    begun: set[int] = field(default_factory=set)


class PackedPixels:
    """Takes the place of the cache's memory map: reads photos from shards, and prefetches shards.

    Args:
        pack: the pack.
        series: of its shards that are read.
        size: pixels a side.
    """

    def __init__(self, pack: Pack, series: str, size: int) -> None:
        self.pack, self.series, self.shape = pack, series, (len(pack), size, size, 3)
        self.places, self.shards = pack.places(series), pack.index.series[series][1]
        self.shard_of = self.places["shard"].astype(np.int64)
        self._plans: list[ReadingPlan] = []
        self._change = Condition()

    @cached_property
    def window(self) -> int:
        """How many shards may be read in turns: all, or a third of those that this machine may keep.

        Beside the window that is read there is room for the next one, and for the one before, of which other
        threads and ranks may still read. A function of the pack and of the limit: the same on all machines.
        """
        if self.pack.cache is None:
            return len(self.shards)
        every = [shards for _, shards in self.pack.index.series.values()]
        if sum(shard.num_bytes for shards in every for shard in shards) <= self.pack.cache.limit:
            return len(self.shards)
        longest = max(shard.num_bytes for shard in self.shards)
        return max(1, self.pack.cache.limit // (3 * longest * len(every)))

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read photos by their rows: uint8 (N, size, size, 3); (size, size, 3) for a single row.

        Raises:
            FlowersError: a shard cannot be fetched or is damaged, or a photo in it cannot be read.
        """
        wanted = np.arange(*rows.indices(len(self.pack))) if isinstance(rows, slice) else np.atleast_1d(rows)
        pixels = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        shard_of = self.shard_of[wanted]
        with self._change:
            for plan in self._plans:
                plan.begun.update(shard_of.tolist())
            self._change.notify_all()
        read = self._read_files if self.series == FILES else self._read_pixels
        for shard in np.unique(shard_of).tolist():
            read(shard, wanted, np.flatnonzero(shard_of == shard).tolist(), pixels)
        return pixels[0] if np.ndim(rows) == 0 and not isinstance(rows, slice) else pixels

    def _read_pixels(self, shard: int, wanted: np.ndarray, indices: list[int], pixels: np.ndarray) -> None:
        offsets = self.places["offset"][wanted[indices]].tolist()
        pieces = [
            (offset, memoryview(pixels[index]).cast("B"))
            for offset, index in zip(offsets, indices, strict=True)
        ]
        self._read(shard, pieces)

    def _read(self, shard: int, pieces: list[tuple[int, memoryview]]) -> None:
        """Read parts of a shard: from here, or apart where it does not fit and few of its photos are read."""
        entry, cache = self.shards[shard], self.pack.cache
        planned = (
            cache is None
            or self.window == len(self.shards)
            or any(shard in plan.expected for plan in list(self._plans))
        )
        if planned or (cache is not None and cache.has(entry)):
            self.pack.read(entry, pieces)
        else:
            self.pack.read_apart(entry, pieces)

    def _read_files(self, shard: int, wanted: np.ndarray, indices: list[int], pixels: np.ndarray) -> None:
        for index in indices:
            row = int(wanted[index])
            try:
                pixels[index] = load_photo(self.file_bytes(row), self.shape[1]).permute(1, 2, 0).numpy()
            except UnreadablePhoto as reason:
                raise damaged(self.pack.where, f"{self.pack.paths[row]!r:.80}: {reason}") from reason

    def file_bytes(self, row: int) -> bytes:
        """Return the bytes of a photo, as they are in its shard.

        Raises:
            UnreadablePhoto: they are more than `Limits.max_bytes`.
            FlowersError: see `__getitem__`.
        """
        shard, offset, length = (int(number) for number in self.places[row].tolist())
        if length > get_limits().max_bytes:
            raise UnreadablePhoto("is larger than the limit (--data.limits.max_bytes)")
        content = bytearray(length)
        self._read(shard, [(offset, memoryview(content))])
        return bytes(content)

    def begin(self, windows: list[list[int]]) -> ReadingPlan:
        """Fetch shards in threads: those of the first two windows, then of each as the one before begins.

        Args:
            windows: numbers of shards, in the order in which they will be read.

        Returns:
            The plan, which lasts until `end`.
        """
        plan = ReadingPlan({shard for window in windows for shard in window})
        with self._change:
            self._plans.append(plan)
        if self.pack.cache is not None and windows:
            for share in range(FETCHERS):
                args = (plan, [window[share::FETCHERS] for window in windows], windows)
                Thread(target=self._prefetch, args=args, name="shards", daemon=True).start()
        return plan

    def end(self, plan: ReadingPlan) -> None:
        """End a plan: shards that no plan expects are not fetched for a photo or two."""
        with self._change:
            if plan in self._plans:
                self._plans.remove(plan)
            self._change.notify_all()

    def _prefetch(self, plan: ReadingPlan, shares: list[list[int]], windows: list[list[int]]) -> None:
        """Fetch a share of each window, while other threads fetch the others."""
        cache = self.pack.cache
        assert cache is not None
        for number, share in enumerate(shares):
            before = windows[number - 1] if number else []
            with self._change:
                while number > 1 and plan in self._plans and not plan.begun.intersection(before):
                    self._change.wait()
            cache.touch([self.shards[shard] for shard in before])
            for shard in share:
                if plan not in self._plans:
                    return
                try:
                    cache.fetch(self.shards[shard], shard=True)
                except FlowersError:
                    return  # whoever reads it says why

"""Which photos are in which batch, which of them balance the classes, and which stand for all in a sample.

A sampler item is a whole batch, with its epoch in it, so that what a batch holds depends neither on the
worker that makes it nor on what the worker made before. In `fit`, `batch_size` is the global one: of each
batch a rank takes every `ranks`-th photo. Elsewhere a rank takes every `ranks`-th batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.draws import epoch_draws

Balance = Literal["none", "sampler", "loss"]


class BatchKey(NamedTuple):
    """What a batch is made from.

    Args:
        epoch: decides the draws.
        rows: int64 (N,), this rank's photos.
        total: photos on all ranks together.
        slots: int64 (N,): which of the epoch's draws each photo takes.
        weights: float64 (N,), see `Batch`.

    >>> key = BatchKey(epoch=0, rows=np.array([4, 7, 1]), total=3, slots=np.array([4, 7, 1]))
    >>> key.part(slice(0, 2)).rows.tolist()
    [4, 7]
    """

    epoch: int
    rows: np.ndarray
    total: int
    slots: np.ndarray
    weights: np.ndarray | None = None

    def part(self, members: slice) -> BatchKey:
        """Return the key of a part of the batch."""
        weights = None if self.weights is None else self.weights[members]
        return self._replace(rows=self.rows[members], slots=self.slots[members], weights=weights)


class ReadingOrder(Protocol):
    """How photos that are read from shards are to be ordered: see `packed.ShardOrder`."""

    def arrange(self, order: np.ndarray, seed: int | None, epoch: int) -> np.ndarray:
        """Return the positions of an order in the sequence in which they are to be shown."""
        ...

    def expect(self, order: np.ndarray) -> object:
        """Prefetch photos that will be read, in this order; return the plan."""
        ...

    def end(self, plan: Any) -> None:
        """End a plan that `expect` returned."""
        ...


class BatchSampler(Sampler[BatchKey]):
    """The batches of one rank in one epoch; a short last batch is kept.

    No photos are one empty batch: a refit validates nothing, at the moments at which other runs validate.

    Args:
        photos: how many there are.
        batch_size: photos in a batch on all ranks together.
        rank: of this process.
        ranks: processes that share each batch.
        seed: of the order; None for the photos' own order.
        position: returns the epoch and the batch to start with, when iteration starts (for a resume inside an
            epoch).
        labels: int64 (photos,): their classes; needed to balance them.
        balance: 'sampler' shows equally many photos of each class, 'loss' weights their losses.
        reading: changes the order for photos that are read from shards; None for others.

    >>> [key.rows.tolist() for key in BatchSampler(5, batch_size=2)]
    [[0, 1], [2, 3], [4]]
    >>> [key.rows.tolist() for key in BatchSampler(5, batch_size=4, rank=1, ranks=2)]
    [[1, 3], []]
    """

    def __init__(
        self,
        photos: int,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int | None = None,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        labels: np.ndarray | None = None,
        balance: Balance = "none",
        reading: ReadingOrder | None = None,
    ) -> None:
        self.photos, self.batch_size, self.rank, self.ranks = photos, batch_size, rank, ranks
        self.seed, self.position = seed, position
        self.labels, self.balance, self.reading = labels, balance, reading

    def __len__(self) -> int:
        return max(1, -(-self.photos // self.batch_size))

    def __iter__(self) -> Iterator[BatchKey]:
        epoch, first = self.position()
        order, slots = self._order(epoch)
        if self.reading is not None:
            places = self.reading.arrange(order, self.seed, epoch)
            order, slots = order[places], slots[places]
        plan = None if self.reading is None else self.reading.expect(order[first * self.batch_size :])
        weights = photo_weights(self.labels) if self.balance == "loss" and self.labels is not None else None
        try:
            for start in range(first * self.batch_size, max(1, self.photos), self.batch_size):
                batch = slice(start, start + self.batch_size)
                rows, mine = order[batch], slice(self.rank, None, self.ranks)
                key = BatchKey(epoch, rows[mine], len(rows), slots[batch][mine])
                if weights is not None:
                    key = key._replace(weights=(weights[rows] / weights[rows].mean())[mine])
                yield key
        finally:
            if self.reading is not None:
                self.reading.end(plan)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's photos and the draws that they take: each its own or, where a photo is shown
        more than once, those of its position in the epoch."""
        positions = np.arange(self.photos)
        if self.seed is None:
            return positions, positions
        if self.balance == "sampler" and self.labels is not None:
            return balanced_order(self.labels, self.seed, epoch), positions
        order = epoch_draws(self.seed, epoch, self.photos).order
        return order, order


class WholeBatches(Sampler[BatchKey]):
    """Batches in the photos' own order, each made by one rank: the ranks take them in turn.

    So a batch holds the same photos on any number of ranks, and what is computed for it has the same bits.
    All ranks have as many batches; those after the last photo are empty.

    Args:
        photos: how many there are.
        batch_size: photos in a batch.
        rank: of this process.
        ranks: processes that share the photos.
        first: the photo to begin with.

    >>> [key.rows.tolist() for key in WholeBatches(5, batch_size=2)]
    [[0, 1], [2, 3], [4]]
    >>> [key.rows.tolist() for key in WholeBatches(5, batch_size=2, rank=1, ranks=2)]
    [[2, 3], []]
    """

    def __init__(self, photos: int, batch_size: int, rank: int = 0, ranks: int = 1, first: int = 0) -> None:
        self.photos, self.batch_size, self.rank, self.ranks = photos, batch_size, rank, ranks
        self.first = first

    def __len__(self) -> int:
        return max(1, -(-(self.photos - self.first) // (self.batch_size * self.ranks)))

    def __iter__(self) -> Iterator[BatchKey]:
        each = self.batch_size * self.ranks
        for turn in range(len(self)):
            start = self.first + turn * each
            mine = start + self.rank * self.batch_size
            rows = np.arange(mine, max(mine, min(mine + self.batch_size, self.photos)))
            yield BatchKey(0, rows, min(each, self.photos - start), rows)


def check_ranks(batch_size: int, ranks: int) -> None:
    """Refuse a number of devices that does not divide the batch.

    Raises:
        FlowersError: `batch_size` is no multiple of it.
    """
    if batch_size % ranks:
        raise FlowersError(
            f"--data.batch_size {batch_size} cannot be divided among {ranks} devices; give a multiple of"
            f" {ranks}."
        )


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw the photos of one epoch, as many of each class, in the order in which they are shown.

    An epoch keeps its length. Photos of a class that is too small for its share are repeated, with counts
    that differ by one at most; of a class that is too large each epoch takes others. The order is a function
    of the arguments alone.

    Args:
        labels: int64 (N,): classes of the training photos.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 (N,): indices of photos, with repetitions and omissions.
    """
    stream = np.random.Philox(key=np.array([seed % 2**64, (epoch << 2) | 3], dtype=np.uint64))

    def shuffle(values: np.ndarray) -> np.ndarray:
        return np.asarray(values[np.argsort(stream.random_raw(len(values)), kind="stable")])

    classes = shuffle(np.unique(labels))  # the first ones get one photo more where N does not divide
    shares = np.full(len(classes), len(labels) // len(classes))
    shares[: len(labels) % len(classes)] += 1
    shown = [
        np.resize(shuffle(np.flatnonzero(labels == label)), share)
        for label, share in zip(classes, shares, strict=True)
    ]
    return shuffle(np.concatenate(shown))


def photo_weights(labels: np.ndarray) -> np.ndarray:
    """Weigh each photo's loss so that all classes count the same: N / (classes * photos of its class).

    Args:
        labels: int64 (N,).

    Returns:
        float64 (N,), 1 on average.

    >>> photo_weights(np.array([0, 0, 0, 1])).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(len(labels) / (len(counts) * counts[classes]))


def even_sample(labels: np.ndarray, most: int, seed: int | None = None) -> np.ndarray:
    """Choose photos as evenly over the classes as their numbers allow.

    Args:
        labels: int64 (N,).
        most: how many; without a seed it is rounded down to as many of each class, one at least.
        seed: draws them; None for photos at even distances in each class's list, from the first to the last.

    Returns:
        int64: their indices, sorted; by class first where a seed draws them.

    >>> labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    >>> even_sample(labels, 4).tolist()
    [0, 4, 5, 7]
    >>> labels[even_sample(labels, 5, seed=0)].tolist()
    [0, 0, 0, 1, 1]
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if seed is None:
        each = max(1, most // len(members))
        spread = (np.linspace(0, len(of_class) - 1, min(each, len(of_class))) for of_class in members)
        chosen = [of_class[steps.astype(np.int64)] for of_class, steps in zip(members, spread, strict=True)]
        return np.sort(np.concatenate(chosen))
    order = np.random.default_rng(seed).permutation(len(labels))
    turns = np.zeros(len(labels), np.int64)
    for of_class in members:
        turns[order[labels[order] == labels[of_class[0]]]] = np.arange(len(of_class))
    drawn = order[np.argsort(turns[order], kind="stable")][:most]
    return drawn[np.argsort(labels[drawn], kind="stable")]

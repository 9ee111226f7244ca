"""Which photos stand in which batch, and the batches themselves.

A sampler item is a whole batch, with its epoch in it, so that what a batch holds depends neither on the
worker that makes it nor on what the worker made before. `batch_size` is the global one: of each batch a rank
takes every `ranks`-th photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from flowers_pl.data.augmentation import EpochDraws, epoch_draws
from flowers_pl.data.cache import DecodedPhotos
from flowers_pl.data.decoding import UnreadablePhoto, load_photo
from flowers_pl.data.sampling import Balance, balanced_order, photo_weights


class Batch(NamedTuple):
    """N photos of one rank.

    Args:
        photos: (N, 3, size, size), RGB, values 0 to 255: uint8, or float32 once augmented; (0, 3, size, size)
            where `features` stand for them.
        labels: int64 (N,); -1 where no label is known.
        rows: int64 (N,): which photos of their list these are.
        total: photos in this batch on all ranks together.
        draws: int32 (N, augment.DRAWS) in training, for the augmentation, else None.
        keys: int64 (N,) in training, for the dropout, else None.
        weights: float32 (N,) of the losses, 1 on average over the batch on all ranks; None where all are 1.
        unreadable: (row, reason) of photos that should stand here.
        features: (N, ...), what `frozen.FrozenPart` makes of the photos, where that is done already.
    """

    photos: Tensor
    labels: Tensor
    rows: Tensor
    total: int
    draws: Tensor | None = None
    keys: Tensor | None = None
    weights: Tensor | None = None
    unreadable: Sequence[tuple[int, str]] = ()
    features: Tensor | None = None


class Prediction(NamedTuple):
    """What is predicted for a batch.

    Args:
        rows: int64 (N,): which photos of the list these are.
        probabilities: float (N, classes).
        unreadable: (row, reason) of photos of the batch that could not be read.
        unlike: float (N,), see `unlike.Unlike`; None where the model cannot tell, and in a test.
    """

    rows: Tensor
    probabilities: Tensor
    unreadable: Sequence[tuple[int, str]]
    unlike: Tensor | None = None


def join(parts: Sequence[Batch]) -> Batch:
    """One batch of its parts."""
    if len(parts) == 1:
        return parts[0]
    together: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("photos", "labels", "rows", "draws", "keys", "weights", "features")
        if getattr(parts[0], name) is not None
    }
    return parts[0]._replace(**together, unreadable=[one for part in parts for one in part.unreadable])


class BatchKey(NamedTuple):
    """What a batch is made from.

    Args:
        epoch: decides the draws.
        rows: int64 (N,), this rank's photos.
        total: photos on all ranks together.
        slots: int64 (N,): which of the epoch's draws each photo takes.
        weights: float64 (N,), see `Batch`.
    """

    epoch: int
    rows: np.ndarray
    total: int
    slots: np.ndarray
    weights: np.ndarray | None = None

    def part(self, places: slice) -> BatchKey:
        """The key of a part of the batch."""
        weights = None if self.weights is None else self.weights[places]
        return self._replace(rows=self.rows[places], slots=self.slots[places], weights=weights)


class BatchSampler(Sampler[BatchKey]):
    """The batches of one rank in one epoch; a short last batch is kept.

    Args:
        photos: how many there are.
        batch_size: photos of a batch on all ranks together.
        rank: this rank.
        ranks: how many there are.
        seed: of the order; None for the photos' own order.
        position: tells the epoch and the batch to start with, when iteration starts (for a resume inside an
            epoch).
        labels: int64 (photos,): their classes; needed to balance them.
        balance: 'sampler' shows as many photos of each class, 'loss' weighs their losses.
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
    ) -> None:
        self.photos, self.batch_size, self.rank, self.ranks = photos, batch_size, rank, ranks
        self.seed, self.position = seed, position
        self.labels, self.balance = labels, balance

    def __len__(self) -> int:
        return -(-self.photos // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        epoch, first = self.position()
        order, slots = self._order(epoch)
        weights = photo_weights(self.labels) if self.balance == "loss" and self.labels is not None else None
        for start in range(first * self.batch_size, self.photos, self.batch_size):
            batch = slice(start, start + self.batch_size)
            rows, mine = order[batch], slice(self.rank, None, self.ranks)
            key = BatchKey(epoch, rows[mine], len(rows), slots[batch][mine])
            if weights is not None:
                key = key._replace(weights=(weights[rows] / weights[rows].mean())[mine])
            yield key

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's photos, and the draws that they take: each its own, or, where a photo is shown more
        than once, those of its place in the epoch."""
        places = np.arange(self.photos)
        if self.seed is None:
            return places, places
        if self.balance == "sampler" and self.labels is not None:
            return balanced_order(self.labels, self.seed, epoch), places
        order = epoch_draws(self.seed, epoch, self.photos).order
        return order, order


class CachedPhotos(Dataset[Batch]):
    """Batches of decoded photos.

    Args:
        decoded: all decoded photos.
        rows: int64 (N,): the rows of `decoded.pixels` that take part.
        labels: int64 (N,): their classes.
        seed: of augmentation and dropout; None for validation, which has neither.
    """

    def __init__(
        self, decoded: DecodedPhotos, rows: np.ndarray, labels: np.ndarray, seed: int | None = None
    ) -> None:
        self.pixels, self.rows, self.labels, self.seed = decoded.pixels, rows, labels, seed
        self._draws: tuple[int, EpochDraws] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: BatchKey) -> Batch:
        return self.without_pixels(key)._replace(photos=self.read(key.rows))

    def without_pixels(self, key: BatchKey) -> Batch:
        """The batch but for its photos."""
        size = self.pixels.shape[1]
        batch = Batch(
            photos=torch.empty(0, 3, size, size, dtype=torch.uint8),
            labels=torch.from_numpy(self.labels[key.rows]),
            rows=torch.from_numpy(key.rows),
            total=key.total,
        )
        if self.seed is None:
            return batch
        draws = self._of_epoch(self.seed, key.epoch)
        return batch._replace(
            draws=torch.from_numpy(draws.draws[key.slots]),
            keys=torch.from_numpy(draws.keys[key.slots]),
            weights=None if key.weights is None else torch.from_numpy(key.weights.astype(np.float32)),
        )

    def read(self, places: np.ndarray) -> Tensor:
        """Photos by their place among those that take part: uint8 (N, 3, size, size), channels last in
        memory."""
        return torch.from_numpy(np.asarray(self.pixels[self.rows[places]])).permute(0, 3, 1, 2)

    def _of_epoch(self, seed: int, epoch: int) -> EpochDraws:
        if self._draws is None or self._draws[0] != epoch:
            self._draws = (epoch, epoch_draws(seed, epoch, len(self)))
        return self._draws[1]


class PhotoFiles(Dataset[Batch]):
    """Batches of photos read from their files.

    Args:
        root: the folder.
        paths: of the photos, relative to it.
        size: pixels a side.
        labels: int64 (photos,), where they are known.
    """

    def __init__(self, root: Path, paths: Sequence[str], size: int, labels: np.ndarray | None = None) -> None:
        self.root, self.paths, self.size = root, paths, size
        self.labels = np.full(len(paths), -1) if labels is None else labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: BatchKey) -> Batch:
        pixels = np.empty((len(key.rows), self.size, self.size, 3), dtype=np.uint8)
        rows: list[int] = []
        unreadable: list[tuple[int, str]] = []
        for row in key.rows.tolist():
            try:
                photo = load_photo(self.root / self.paths[row], self.size)
            except UnreadablePhoto as reason:
                unreadable.append((row, str(reason)))
                continue
            np.stack(list(photo.numpy()), axis=-1, out=pixels[len(rows)])  # faster than transposing
            rows.append(row)
        return Batch(
            photos=torch.from_numpy(pixels[: len(rows)]).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.labels[rows]),
            rows=torch.tensor(rows, dtype=torch.int64),
            total=key.total,
            unreadable=unreadable,
        )

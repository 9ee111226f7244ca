"""Batches, of photos decoded once or read from their files, and what is predicted for them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.cache import DecodedPhotos
from flowers_pl.data.decoding import UnreadablePhoto, load_photo
from flowers_pl.data.draws import DRAWS, EpochDraws, epoch_draws
from flowers_pl.data.folder import list_pictures
from flowers_pl.data.sampling import BatchKey


class Batch(NamedTuple):
    """N photos of one rank.

    Args:
        photos: (N, 3, size, size), RGB, values 0 to 255: uint8, or float32 once augmented; (0, 3, size, size)
            where `features` take their place.
        labels: int64 (N,); -1 where no label is known.
        rows: int64 (N,): which photos of their list these are.
        total: photos in this batch on all ranks together.
        draws: int32 (N, `Augmentation.num_draws`) in training, for the augmentation, else None.
        keys: int64 (N,) in training, for the dropout, else None.
        weights: float32 (N,) of the losses, 1 on average over the batch on all ranks; None where all are 1.
        unreadable: (row, reason) of photos that are missing here.
        features: (N, ...), what the frozen part of the network makes of the photos, where it has run already.
        targets: float32 (N, num_classes) in training with soft labels: what to train on in place of `labels`.
        epoch: of the run.

    >>> batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), torch.tensor([5, 8]), total=2)
    >>> [len(part) for part in batch[:3]], batch.draws
    ([2, 2, 2], None)
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
    targets: Tensor | None = None
    epoch: int = 0


class Prediction(NamedTuple):
    """What is predicted for a batch.

    Args:
        rows: int64 (N,): which photos of the list these are.
        probabilities: float (N, num_classes).
        unreadable: (row, reason) of photos of the batch that could not be read.
        unlike: float (N,): novelty, above 1 where a photo is unlike the training photos; None in a test, and
            where the model has no measure of it.
    """

    rows: Tensor
    probabilities: Tensor
    unreadable: Sequence[tuple[int, str]]
    unlike: Tensor | None = None


def join(parts: Sequence[Batch]) -> Batch:
    """Join the parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("photos", "labels", "rows", "draws", "keys", "weights", "features", "targets")
        if getattr(parts[0], name) is not None
    }
    return parts[0]._replace(**joined, unreadable=[entry for part in parts for entry in part.unreadable])


class CachedPhotos(Dataset[Batch]):
    """Batches of decoded photos.

    Args:
        decoded: all decoded photos.
        rows: int64 (N,): the rows of `decoded.pixels` that take part.
        labels: int64 (N,): their classes.
        seed: of augmentation and dropout; None for validation, which has neither.
        num_draws: for the augmentation of each photo, see `Augmentation.num_draws`.

    Attributes:
        targets: float32 (N, num_classes) where there are soft labels, else None.
    """

    def __init__(
        self,
        decoded: DecodedPhotos,
        rows: np.ndarray,
        labels: np.ndarray,
        seed: int | None = None,
        num_draws: int = DRAWS,
    ) -> None:
        self.pixels, self.rows, self.labels, self.seed = decoded.pixels, rows, labels, seed
        self.num_draws, self._hold = num_draws, decoded.hold
        self.targets: np.ndarray | None = None
        self._draws: tuple[int, EpochDraws] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: BatchKey) -> Batch:
        return self.without_pixels(key)._replace(photos=self.read(key.rows))

    def without_pixels(self, key: BatchKey) -> Batch:
        """Return the batch but for its photos."""
        size = self.pixels.shape[1]
        batch = Batch(
            photos=torch.empty(0, 3, size, size, dtype=torch.uint8),
            labels=torch.from_numpy(self.labels[key.rows]),
            rows=torch.from_numpy(key.rows),
            total=key.total,
            epoch=key.epoch,
        )
        if self.seed is None:
            return batch
        draws = self._draws_of(self.seed, key.epoch)
        return batch._replace(
            draws=torch.from_numpy(draws.draws[key.slots]),
            keys=torch.from_numpy(draws.keys[key.slots]),
            weights=None if key.weights is None else torch.from_numpy(key.weights.astype(np.float32)),
            targets=None if self.targets is None else torch.from_numpy(self.targets[key.rows]),
        )

    def read(self, indices: np.ndarray) -> Tensor:
        """Read photos by their index among those that take part: uint8 (N, 3, size, size), channels last in
        memory."""
        return torch.from_numpy(self.pixels[self.rows[indices]]).permute(0, 3, 1, 2)

    def of_size(self, decoded: DecodedPhotos, paths: Iterable[str]) -> CachedPhotos:
        """Return the same photos, with the pixels of another cache of the same folder.

        Args:
            decoded: what the other cache holds; its rows are its own.
            paths: of these photos, in their order.

        Raises:
            FlowersError: the other cache lacks one of them.
        """
        photos = copy.copy(self)
        photos.pixels, photos._hold, photos.rows = decoded.pixels, decoded.hold, decoded.rows_of(paths)
        return photos

    def _draws_of(self, seed: int, epoch: int) -> EpochDraws:
        draws = self._draws  # a thread that is late may have replaced it when this one returns
        if draws is None or draws[0] != epoch:
            self._draws = draws = epoch, epoch_draws(seed, epoch, len(self), self.num_draws)
        return draws[1]


class PhotoFiles(Dataset[Batch]):
    """Batches of photos read from their files.

    Args:
        root: the folder.
        paths: of the photos, relative to it.
        size: pixels a side.
        labels: int64 (len(paths),), where they are known.
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


def photos_to_predict(source: str | None, size: int) -> PhotoFiles:
    """Return batches of a photo, or of a folder of photos; their paths are relative to the folder.

    Args:
        source: the photo or folder.
        size: pixels a side.

    Raises:
        FlowersError: none is given, or nothing is there.
    """
    if source is None:
        raise FlowersError("--data.predict_root is missing; give a photo or a folder of photos to predict.")
    root, paths = list_pictures(source)
    return PhotoFiles(root, paths, size)

"""Frozen features of photos that are not augmented, computed once for each frozen part of a network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowers_pl.data.batches import Batch, BatchKey, CachedPhotos
from flowers_pl.data.prefetch import FrozenStart


class KeptFeatures(Dataset[Batch]):
    """Batches of photos; of features instead, once these are known.

    The features lie in a file without a name, mapped into memory, so their number costs disk and not memory.

    Args:
        photos: the validation side.
        frozen: tells what makes features of photos now.
        folder: where the file lies.
    """

    def __init__(
        self, photos: CachedPhotos, frozen: Callable[[], FrozenStart | None], folder: Path | None = None
    ) -> None:
        self.photos, self.frozen, self.folder = photos, frozen, folder
        self._of: FrozenStart | None = None
        self._known = np.zeros(len(photos), bool)
        self._features = torch.empty(0)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: BatchKey) -> Batch:
        if not self.complete(key.rows):
            return self.photos[key]
        return self.photos.without_pixels(key)._replace(features=self._features[key.rows])

    def complete(self, rows: np.ndarray | None = None) -> bool:
        """Whether the features of these photos, or of all, are known."""
        known = self._known if rows is None else self._known[rows]
        return self._of is not None and self._of is self.frozen() and len(known) > 0 and bool(known.all())

    def begin(self) -> None:
        """Forget features of another frozen part."""
        if self._of is not self.frozen():
            self._of, self._known[:] = self.frozen(), False
            self._features = torch.empty(0)

    def put(self, rows: Tensor, features: Tensor) -> None:
        """Keep the features of photos; `begin` was called before."""
        with self._lock:
            if not len(self._features):
                self._features = self._place(features)
        self._features[rows] = features.cpu()
        self._known[rows.numpy()] = True

    def _place(self, features: Tensor) -> Tensor:
        of_one = features[0].numel() * features.element_size()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(len(self) * of_one)
            mapped = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(len(self), of_one)))
        shape = features.permute(0, 2, 3, 1).shape if features.dim() == 4 else features.shape
        placed = mapped.view(features.dtype).view(len(self), *shape[1:])
        return placed.permute(0, 3, 1, 2) if features.dim() == 4 else placed

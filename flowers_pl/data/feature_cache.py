"""Features of photos that are not augmented, computed once for each frozen part of a network."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowers_pl.core.errors import reason_of
from flowers_pl.core.room import reserve
from flowers_pl.data.batches import Batch, CachedPhotos
from flowers_pl.data.sampling import BatchKey

log = logging.getLogger(__name__)


class FrozenNetwork(Protocol):
    """The frozen part of a network, as far as the data must know it: `network.fast_frozen.FrozenPart`."""

    chunk: int  # photos at a time on one core
    share: float  # of the network's convolutions that are frozen
    pools: bool  # whether all are, so that pooled features come out

    def __call__(self, photos: Tensor) -> Tensor:
        """Compute the features of photos, (N, 3, H, W), values 0 to 255."""
        ...


class FeatureCache(Dataset[Batch]):
    """Batches of photos; of features instead, once these are known.

    The features are in a file without a name, mapped into memory, so they take room on disk, not in memory.

    Args:
        photos: the validation side.
        frozen: returns what makes features of photos now.
        folder: of the file.
    """

    def __init__(
        self, photos: CachedPhotos, frozen: Callable[[], FrozenNetwork | None], folder: Path | None = None
    ) -> None:
        self.photos, self.frozen, self.folder = photos, frozen, folder
        self._of: FrozenNetwork | None = None
        self._known = np.zeros(len(photos), bool)
        self._features = torch.empty(0)
        self._no_room = False
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: BatchKey) -> Batch:
        if not self.complete(key.rows):
            return self.photos[key]
        return self.photos.without_pixels(key)._replace(features=self._features[key.rows])

    def complete(self, rows: np.ndarray | None = None) -> bool:
        """Return whether the features of these photos, or of all, are known."""
        known = self._known if rows is None else self._known[rows]
        return self._of is not None and self._of is self.frozen() and len(known) > 0 and bool(known.all())

    def begin(self) -> bool:
        """Forget features of another frozen part; return whether those of all photos are known."""
        if self._of is not self.frozen():
            self._of, self._known[:] = self.frozen(), False
            self._features, self._no_room = torch.empty(0), False
        return self.complete()

    def put(self, rows: Tensor, features: Tensor) -> None:
        """Store the features of photos, if there is room; `begin` was called before."""
        if not len(rows):  # a rank's share of a small batch
            return
        with self._lock:
            if not len(self._features) and not self._no_room:
                self._allocate(features)
        if self._no_room:
            return
        self._features[rows] = features.cpu()
        self._known[rows.numpy()] = True

    def _allocate(self, features: Tensor) -> None:
        num_bytes = features[0].numel() * features.element_size()
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)  # a pack needs no other cache
            with tempfile.TemporaryFile(dir=self.folder) as file:
                reserve(file.fileno(), len(self) * num_bytes)
                stored = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(len(self), num_bytes)))
        except OSError as error:
            self._no_room = True
            log.warning(
                "--data.cache_dir: validation features (%.1f MB) cannot be stored in %s (%s),"
                " so they are computed in each epoch.",
                len(self) * num_bytes / 1e6, self.folder or "the temporary folder", reason_of(error),
            )  # fmt: skip
            return
        shape = features.permute(0, 2, 3, 1).shape if features.dim() == 4 else features.shape
        whole = stored.view(features.dtype).view(len(self), *shape[1:])
        self._features = whole.permute(0, 3, 1, 2) if features.dim() == 4 else whole

"""Decoded photos that are kept on the device they train on, where it has room for them."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from flowers_pl.data.batches import Batch, CachedPhotos
from flowers_pl.data.cache_shards import MappedPixels
from flowers_pl.data.sampling import BatchKey

SHARE = 0.5  # of the device's free memory that photos may take; training needs the rest
CHUNK = 1024  # photos that are copied at a time


class DevicePhotos(Dataset[Batch]):
    """Batches of photos whose pixels lie on a device, so that none are copied while it trains.

    Args:
        photos: the photos; their pixels are copied now.
        device: where to.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> decoded = SimpleNamespace(pixels=np.zeros((3, 8, 8, 3), np.uint8), hold=None)
    >>> photos = CachedPhotos(decoded, rows=np.array([2, 0]), labels=np.array([1, 0]))
    >>> key = BatchKey(epoch=0, rows=np.array([1]), total=1, slots=np.array([1]))
    >>> DevicePhotos(photos, torch.device("cpu"))[key].photos.shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(self, photos: CachedPhotos, device: torch.device) -> None:
        self.photos = photos
        self.pixels = torch.empty(len(photos), *photos.pixels.shape[1:], dtype=torch.uint8, device=device)
        for start in range(0, len(photos), CHUNK):
            rows = photos.rows[start : start + CHUNK]
            self.pixels[start : start + CHUNK] = torch.from_numpy(photos.pixels[rows]).to(device)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: BatchKey) -> Batch:
        rows = torch.from_numpy(key.rows).to(self.pixels.device)
        return self.photos.without_pixels(key)._replace(photos=self.pixels[rows].permute(0, 3, 1, 2))


def has_room(device: torch.device, photos: CachedPhotos) -> bool:
    """Return whether a device is a GPU whose free memory holds all photos beside what training needs."""
    if device.type != "cuda" or not isinstance(photos.pixels, MappedPixels):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(photos) * int(np.prod(photos.pixels.shape[1:])) <= SHARE * free

"""Augment training photos; what each photo gets is a function of (seed, epoch, photo) alone.

The transforms are those of Keras's `ImageDataGenerator` with the original notebook's ranges, and brightness;
on request also a random resized crop, contrast and saturation. torchvision's v2 transforms draw one set of
parameters for a whole batch (pytorch/vision#8484); here each photo has its own, and is interpolated once. On
a CPU, OpenCV warps the photos one by one, four times faster than torch's `grid_sample`; elsewhere
`grid_sample` warps the batch. Both replicate the border, as Keras's `fill_mode="nearest"` does.
"""

from __future__ import annotations

import logging
import threading

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.core.text import printable
from flowers_pl.data.colours import (
    GREY,
    brightness_factors,
    change_colours,
    contrast_factors,
    saturation_factors,
    saturation_matrix,
)
from flowers_pl.data.draws import BITS, DRAWS, EpochDraws, epoch_draws
from flowers_pl.data.ranges import Augmentation
from flowers_pl.data.warps import affine_matrices, blur_passes, blur_taps, pixel_matrices, warp_matrices

__all__ = [
    "BITS", "DRAWS", "Augmentation", "EpochDraws", "affine_matrices", "augment", "augment_opencv",
    "augment_torch", "epoch_draws",
]  # fmt: skip

log = logging.getLogger(__name__)
_warn_once = threading.Lock()  # never released: photos are augmented in several threads
try:
    import cv2

    cv2.setNumThreads(1)  # photos are small, and each thread augments whole ones
except Exception as error:  # one of the libraries that it needs is missing, or of another version
    cv2 = None  # type: ignore[assignment]
    _cv2_error = printable(str(error)) or type(error).__name__
LEVELS = np.arange(256, dtype=np.float32)


def augment(photos: Tensor, draws: Tensor, ranges: Augmentation, size: int | None = None) -> Tensor:
    """Change the colours of each photo, crop, flip, zoom, shift and rotate it, by its own draws.

    Args:
        photos: (N, 3, H, W), values 0 to 255, uint8 or float.
        draws: int32 (N, ranges.num_draws or more) in [0, 2**BITS), see `EpochDraws`.
        ranges: how far photos may be changed.
        size: pixels a side of what is returned; None for that of the photos.

    Returns:
        float32 (N, 3, H, W) or (N, 3, size, size), values 0 to 255, not rounded.

    >>> photos = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    >>> draws = torch.from_numpy(epoch_draws(seed=0, epoch=0, num_photos=2).draws)
    >>> augment(photos, draws, Augmentation()).shape
    torch.Size([2, 3, 32, 32])
    """
    if photos.device.type != "cpu":
        return augment_torch(photos, draws, ranges, size)
    if cv2 is None:
        if _warn_once.acquire(blocking=False):
            log.warning("OpenCV cannot be imported (%s), so augmentation is four times slower.", _cv2_error)
        return augment_torch(photos, draws, ranges, size)
    return augment_opencv(photos, draws, ranges, size)


def augment_opencv(photos: Tensor, draws: Tensor, ranges: Augmentation, size: int | None = None) -> Tensor:
    """Do what `augment` does, on a CPU with OpenCV.

    Photos are augmented one by one, because one fits a core's cache; small steps are done in numpy, whose
    calls do not wait for other threads.
    """
    uniform = draws.numpy().astype(np.float64) / 2**BITS
    old, new = tuple(photos.shape[-2:]), _new_size(photos, size)
    pixels = photos.permute(0, 2, 3, 1).numpy()
    warped = torch.empty(len(photos), *new, 3, dtype=torch.float32)  # a thread's default may be another's
    change_one = _ColoursOfOne(uniform, ranges, pixels.shape[1:])
    matrices = warp_matrices(uniform, ranges, new)
    passes = blur_passes(ranges, old, new)
    taps = blur_taps(matrices, passes, old, new) if passes else np.zeros((len(photos), 2))
    matrices = pixel_matrices(matrices, old, new)
    for row, (photo, target) in enumerate(zip(pixels, warped.numpy(), strict=True)):
        source = change_one(row, photo)
        for _ in range(passes if taps[row].any() else 0):
            across, down = (np.array([tap, 1 - 2 * tap, tap]) for tap in taps[row])
            source = cv2.sepFilter2D(source, -1, across, down, borderType=cv2.BORDER_REPLICATE)
        cv2.warpAffine(
            source, matrices[row], new[::-1], dst=target, borderMode=cv2.BORDER_REPLICATE,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )  # fmt: skip
    return warped.permute(0, 3, 1, 2)


class _ColoursOfOne:
    """Does what `change_colours` does, to one photo at a time, in as few passes over its pixels as will do.

    Args:
        uniform: float64 (N, ranges.num_draws or more) in [0, 1).
        ranges: how far photos may be changed.
        shape: height, width and 3.
    """

    def __init__(self, uniform: np.ndarray, ranges: Augmentation, shape: tuple[int, ...]) -> None:
        self.brightness = brightness_factors(uniform, ranges).astype(np.float32)
        self.contrast = contrast_factors(uniform, ranges).tolist() if ranges.contrast else None
        self.saturation = saturation_factors(uniform, ranges).tolist() if ranges.saturation else None
        self.changed, self.saturated = (np.empty(shape, np.float32) for _ in range(2))

    def __call__(self, row: int, photo: np.ndarray) -> np.ndarray:
        """Change the colours of a photo.

        Args:
            row: of its draws.
            photo: (H, W, 3), uint8 or float.

        Returns:
            float32 (H, W, 3); the next call overwrites it.
        """
        levels = LEVELS if photo.dtype == np.uint8 else photo.astype(np.float32, copy=False)
        values = levels * self.brightness[row]
        pixels = self._look_up(photo, values.clip(0, 255, out=values))
        if self.contrast is not None:
            factor, mean = self.contrast[row], float(np.dot(cv2.mean(pixels)[:3], GREY))
            values = values * factor + (1 - factor) * mean
            pixels = self._look_up(photo, values.clip(0, 255, out=values))
        if self.saturation is not None:
            matrix = saturation_matrix(self.saturation[row])
            pixels = cv2.transform(pixels, matrix, dst=self.saturated).clip(0, 255, out=self.saturated)
        return pixels

    def _look_up(self, photo: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the new pixels: those of bytes come from a table of what becomes of each level."""
        return cv2.LUT(photo, values, dst=self.changed) if photo.dtype == np.uint8 else values


def augment_torch(photos: Tensor, draws: Tensor, ranges: Augmentation, size: int | None = None) -> Tensor:
    """Do what `augment` does, on any device, for all photos at once."""
    uniform = draws.to(torch.float32) / 2**BITS
    old, new = tuple(photos.shape[-2:]), _new_size(photos, size)
    pixels = change_colours(photos, uniform, ranges)
    if len(pixels) == 0:
        return pixels.new_empty(0, 3, *new)
    matrices = warp_matrices(uniform, ranges, new)
    if passes := blur_passes(ranges, old, new):
        taps = blur_taps(matrices, passes, old, new)
        for _ in range(passes):
            pixels = _blur(_blur(pixels, taps[:, 0], 3), taps[:, 1], 2)
    grid = F.affine_grid(matrices, [len(photos), 3, *new], align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _new_size(photos: Tensor, size: int | None) -> tuple[int, int]:
    """Return height and width of the new photos."""
    return (photos.shape[-2], photos.shape[-1]) if size is None else (size, size)


def _blur(pixels: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Give the two neighbours of each pixel along one dimension a weight, one for each photo."""
    weights, last = taps[:, None, None, None], pixels.shape[dim] - 1
    blurred = pixels * (1 - 2 * weights)
    for start, source, count in ((1, 0, last), (0, 0, 1), (0, 1, last), (last, last, 1)):  # edges replicated
        blurred.narrow(dim, start, count).addcmul_(pixels.narrow(dim, source, count), weights)
    return blurred

"""Augment training photos; what each photo gets is a function of (seed, epoch, photo) alone.

The transforms are those of Keras's `ImageDataGenerator` with the original notebook's ranges, and brightness.
torchvision's v2 transforms draw one set of parameters for a whole batch (pytorch/vision#8484); here each
photo has a matrix of its own. On a CPU, OpenCV warps the photos one by one, four times faster than torch's
`grid_sample`; elsewhere `grid_sample` warps the batch. Both replicate the border, as Keras's
`fill_mode="nearest"` does.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import printable

log = logging.getLogger(__name__)
_warn_once = threading.Lock()  # never released: photos are augmented in several threads
try:
    import cv2

    cv2.setNumThreads(1)  # photos are small, and each thread augments whole ones
except Exception as error:  # one of the libraries that it needs is missing, or of another version
    cv2 = None  # type: ignore[assignment]
    _cv2_error = printable(str(error)) or type(error).__name__
DRAWS = 7  # per photo: rotation, shift right, shift down, zoom across, zoom down, flip, brightness
BITS = 24  # of each draw: as many as float32 holds


@dataclass(frozen=True)
class Augmentation:
    """Limit how far a training photo may be changed.

    Args:
        rotation: maximum rotation in degrees, in either direction.
        shift: maximum shift in either direction, as a share of the width or, drawn independently, the height.
        zoom: each axis is scaled by 1 - zoom to 1 + zoom, drawn independently.
        brightness: colours are multiplied by 1 - brightness to 1 + brightness.
        flip: mirror half of the photos left to right.

    Raises:
        FlowersError: a value is out of range.

    >>> Augmentation(rotation=10, flip=False)
    Augmentation(rotation=10, shift=0.1, zoom=0.15, brightness=0.2, flip=False)
    """

    rotation: float = 25.0
    shift: float = 0.1
    zoom: float = 0.15
    brightness: float = 0.2
    flip: bool = True

    def __post_init__(self) -> None:
        for name, most in (("rotation", 180), ("shift", 1), ("zoom", 0.99), ("brightness", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise FlowersError(
                    f"--data.augmentation.{name} must be from 0 to {most}, not {getattr(self, name)}."
                )


class EpochDraws(NamedTuple):
    """All random numbers of one epoch.

    Args:
        order: int64 (num_photos,), the order in which photos are shown.
        draws: int32 (num_photos, DRAWS), uniform in [0, 2**BITS), for `augment`; integers, because a
            Trainer's precision would round floats.
        keys: int64 (num_photos,), seeds of each photo's dropout mask.
    """

    order: np.ndarray
    draws: np.ndarray
    keys: np.ndarray


def epoch_draws(seed: int, epoch: int, num_photos: int) -> EpochDraws:
    """Draw the random numbers of one epoch.

    Row i of `draws` and `keys` is a function of (seed, epoch, i) and of nothing else. Philox is counter-based
    (Salmon et al. 2011): each of the three arrays has a stream of its own, and the numbers do not depend on
    how many photos there are.

    >>> few, many = epoch_draws(seed=0, epoch=3, num_photos=2), epoch_draws(seed=0, epoch=3, num_photos=9)
    >>> few.draws.shape, bool((few.draws == many.draws[:2]).all())
    ((2, 7), True)
    """
    keys = [np.array([seed % 2**64, (epoch << 2) | stream], dtype=np.uint64) for stream in range(3)]
    streams = [np.random.Philox(key=key) for key in keys]
    return EpochDraws(
        order=np.argsort(streams[0].random_raw(num_photos), kind="stable"),
        draws=(streams[1].random_raw(num_photos * DRAWS) >> np.uint64(64 - BITS))
        .astype(np.int32)
        .reshape(num_photos, DRAWS),
        keys=streams[2].random_raw(num_photos).view(np.int64),
    )


def augment(photos: Tensor, draws: Tensor, ranges: Augmentation) -> Tensor:
    """Change brightness, flip, zoom, shift and rotate each photo by its own draws.

    Args:
        photos: (N, 3, H, W), values 0 to 255, uint8 or float.
        draws: int32 (N, DRAWS) in [0, 2**BITS), see `EpochDraws`.
        ranges: how far photos may be changed.

    Returns:
        float32 (N, 3, H, W), values 0 to 255, not rounded.

    >>> photos = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    >>> draws = torch.from_numpy(epoch_draws(seed=0, epoch=0, num_photos=2).draws)
    >>> augment(photos, draws, Augmentation()).shape
    torch.Size([2, 3, 32, 32])
    """
    if photos.device.type != "cpu":
        return augment_torch(photos, draws, ranges)
    if cv2 is None:
        if _warn_once.acquire(blocking=False):
            log.warning("OpenCV cannot be imported (%s), so augmentation is four times slower.", _cv2_error)
        return augment_torch(photos, draws, ranges)
    return augment_opencv(photos, draws, ranges)


def augment_opencv(photos: Tensor, draws: Tensor, ranges: Augmentation) -> Tensor:
    """Do what `augment` does, on a CPU with OpenCV.

    Photos are augmented one by one, because one fits a core's cache; small steps are done in numpy, whose
    calls do not wait for other threads.
    """
    uniform = draws.numpy().astype(np.float64) / 2**BITS
    factors = torch.from_numpy(_brightness_factors(uniform, ranges).astype(np.float32))
    height, width = photos.shape[-2:]
    pixels = photos.permute(0, 2, 3, 1)
    brightened, warped = torch.empty(pixels.shape[1:]), torch.empty(pixels.shape)
    matrices = _pixel_matrices(affine_matrices(uniform, ranges, (height, width)), height, width)
    for photo, factor, matrix, target in zip(pixels, factors, matrices, warped.numpy(), strict=True):
        torch.mul(photo, factor, out=brightened).clamp_(0, 255)
        cv2.warpAffine(
            brightened.numpy(), matrix, (width, height), dst=target, borderMode=cv2.BORDER_REPLICATE,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )  # fmt: skip
    return warped.permute(0, 3, 1, 2)


def augment_torch(photos: Tensor, draws: Tensor, ranges: Augmentation) -> Tensor:
    """Do what `augment` does, on any device, for all photos at once."""
    uniform = draws.to(torch.float32) / 2**BITS
    factors = _brightness_factors(uniform, ranges).to(torch.float32)
    pixels = (photos * factors[:, None, None, None]).clamp_(0, 255)
    if len(pixels) == 0:
        return pixels
    matrices = affine_matrices(uniform, ranges, photos.shape[-2:])
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _brightness_factors(uniform: Any, ranges: Augmentation) -> Any:
    """Return the factors (N,) that the colours of each photo are multiplied by."""
    return 1 + ranges.brightness * (2 * uniform[:, 6] - 1)


def _pixel_matrices(matrices: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert matrices for `affine_grid` to OpenCV's coordinates: pixels from the centre of the first one."""
    half = np.array([width / 2, height / 2])
    scaled = matrices * half[:, None] / np.append(half, 1)
    scaled[:, :, 2] += half - 0.5 - scaled[:, :, :2] @ (half - 0.5)
    return scaled


def affine_matrices(uniform: Any, ranges: Augmentation, size: tuple[int, ...]) -> Any:
    """Return the matrix of each photo for `affine_grid`, from the new photo's coordinates to the old one's.

    Points are flipped, zoomed, shifted, then rotated about the centre, in Keras's order; the rotation is one
    of pixels, so it stays a rotation when a photo is not square.

    Args:
        uniform: float (N, DRAWS) in [0, 1), of numpy or torch.
        ranges: how far photos may be changed.
        size: height and width in pixels.

    Returns:
        float (N, 2, 3), of numpy or torch as `uniform`, for coordinates from -1 to 1.
    """
    xp: Any = torch if isinstance(uniform, Tensor) else np
    height, width = size
    signed = 2 * uniform[:, :5] - 1
    angle = xp.deg2rad(signed[:, 0] * ranges.rotation)
    right, down = signed[:, 1] * (2 * ranges.shift), signed[:, 2] * (2 * ranges.shift)  # of -1 to 1
    zoom_x, zoom_y = 1 + signed[:, 3] * ranges.zoom, 1 + signed[:, 4] * ranges.zoom
    if ranges.flip:
        zoom_x = xp.where(uniform[:, 5] < 0.5, -zoom_x, zoom_x)
    cos, sin = xp.cos(angle), xp.sin(angle)
    across, along = sin * (height / width), sin * (width / height)
    rows = [cos * zoom_x, -across * zoom_y, cos * right - across * down,
            along * zoom_x, cos * zoom_y, along * right + cos * down]  # fmt: skip
    return xp.stack(rows, 1).reshape(-1, 2, 3)

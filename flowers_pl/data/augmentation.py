"""The training augmentation: one draw per photo, a function of (seed, epoch, photo) alone.

Keras's `ImageDataGenerator` as the original notebook set it, with the brightness that the notebook left
out. torchvision's v2 transforms draw one set of parameters for a whole batch (pytorch/vision#8484). Here
each photo has a matrix of its own: on a CPU OpenCV warps one after the other, which is four times faster
there than torch's `grid_sample`; elsewhere `grid_sample` warps the batch. Both repeat the edge, which is
Keras's `fill_mode="nearest"`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError

try:
    import cv2
except ImportError as reason:  # its wheel wants a libGL, which small containers lack
    cv2 = None  # type: ignore[assignment]
    logging.getLogger(__name__).info("OpenCV cannot be loaded (%s): augmentation is slower.", reason)

if cv2 is not None:
    cv2.setNumThreads(1)  # photos are small, and are spread over threads as wholes
DRAWS = 7  # a photo: rotation, shift right, shift down, zoom across, zoom down, flip, brightness
BITS = 24  # of each draw: as many as float32 holds


@dataclass(frozen=True)
class Augmentation:
    """How far a training photo may be changed.

    Args:
        rotation: at most so many degrees, each way.
        shift: at most this share of the width and, drawn apart, of the height, each way.
        zoom: each axis is scaled by 1 - zoom to 1 + zoom, drawn apart.
        brightness: colours are multiplied by 1 - brightness to 1 + brightness.
        flip: mirror half of the photos left to right.
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
    """All that chance decides in one epoch.

    Args:
        order: int64 (photos,), the order in which photos are shown.
        draws: int32 (photos, DRAWS), uniform in [0, 2**BITS), for `augment`: whole numbers, which no Trainer
            precision rounds.
        keys: int64 (photos,), for the dropout.
    """

    order: np.ndarray
    draws: np.ndarray
    keys: np.ndarray


def epoch_draws(seed: int, epoch: int, photos: int) -> EpochDraws:
    """Draw for one epoch: row i of `draws` and `keys` is a function of (seed, epoch, i) and of nothing else.

    Philox is counter-based (Salmon et al. 2011), so each of the three has a stream of its own, and numbers do
    not depend on how many photos there are.
    """
    keys = [np.array([seed % 2**64, (epoch << 2) | stream], dtype=np.uint64) for stream in range(3)]
    streams = [np.random.Philox(key=key) for key in keys]
    return EpochDraws(
        order=np.argsort(streams[0].random_raw(photos), kind="stable"),
        draws=(streams[1].random_raw(photos * DRAWS) >> np.uint64(64 - BITS))
        .astype(np.int32)
        .reshape(photos, DRAWS),
        keys=streams[2].random_raw(photos).view(np.int64),
    )


def augment(photos: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    """Light, flip, zoom, shift and rotate each photo by its own draw.

    Args:
        photos: (N, 3, H, W), values 0 to 255, uint8 or float.
        draws: int32 (N, DRAWS) in [0, 2**BITS), see `EpochDraws`.
        how: the ranges.

    Returns:
        float32 (N, 3, H, W), values 0 to 255, not rounded.
    """
    on_cpu = photos.device.type == "cpu" and cv2 is not None
    return (by_opencv if on_cpu else by_torch)(photos, draws, how)


def by_opencv(photos: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    """`augment` on a CPU: photo by photo, for one fits a core's cache; its small steps in numpy, which do
    not take turns with other threads."""
    uniform = draws.numpy().astype(np.float64) / 2**BITS
    light = torch.from_numpy(_light(uniform, how).astype(np.float32))
    height, width = photos.shape[-2:]
    pixels = photos.permute(0, 2, 3, 1)
    lit, warped = torch.empty(pixels.shape[1:]), torch.empty(pixels.shape)
    changes = _in_pixels(matrices(uniform, how, (height, width)), height, width)
    for photo, by, change, place in zip(pixels, light, changes, warped.numpy(), strict=True):
        torch.mul(photo, by, out=lit).clamp_(0, 255)
        cv2.warpAffine(
            lit.numpy(), change, (width, height), dst=place, borderMode=cv2.BORDER_REPLICATE,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )  # fmt: skip
    return warped.permute(0, 3, 1, 2)


def by_torch(photos: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    """`augment` on any device, all photos at once."""
    uniform = draws.to(torch.float32) / 2**BITS
    light = _light(uniform, how).to(torch.float32)
    pixels = (photos * light[:, None, None, None]).clamp_(0, 255)
    if len(pixels) == 0:
        return pixels
    changes = matrices(uniform, how, photos.shape[-2:])
    grid = F.affine_grid(changes, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _light(uniform: Any, how: Augmentation) -> Any:
    """What each photo's colours are multiplied by, (N,)."""
    return 1 + how.brightness * (2 * uniform[:, 6] - 1)


def _in_pixels(changes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Matrices for `affine_grid` as OpenCV wants them: it counts in pixels, from the middle of the first."""
    half = np.array([width / 2, height / 2])
    scaled = changes * half[:, None] / np.append(half, 1)
    scaled[:, :, 2] += half - 0.5 - scaled[:, :, :2] @ (half - 0.5)
    return scaled


def matrices(uniform: Any, how: Augmentation, size: tuple[int, ...]) -> Any:
    """The matrix of each photo, from places in the new photo to places in the old one, as `affine_grid` wants
    them.

    Keras's order: a place is flipped, zoomed, shifted, then rotated about the middle; all in pixels, so that
    a rotation stays one when a photo is not square.

    Args:
        uniform: float (N, DRAWS) in [0, 1), of numpy or torch.
        how: the ranges.
        size: height and width in pixels.

    Returns:
        (N, 2, 3), of the same kind, for coordinates from -1 to 1.
    """
    xp: Any = torch if isinstance(uniform, Tensor) else np
    height, width = size
    signed = 2 * uniform[:, :5] - 1
    angle = xp.deg2rad(signed[:, 0] * how.rotation)
    right, down = signed[:, 1] * (2 * how.shift), signed[:, 2] * (2 * how.shift)  # of -1 to 1
    zoom_x, zoom_y = 1 + signed[:, 3] * how.zoom, 1 + signed[:, 4] * how.zoom
    if how.flip:
        zoom_x = xp.where(uniform[:, 5] < 0.5, -zoom_x, zoom_x)
    cos, sin = xp.cos(angle), xp.sin(angle)
    across, along = sin * (height / width), sin * (width / height)
    rows = [cos * zoom_x, -across * zoom_y, cos * right - across * down,
            along * zoom_x, cos * zoom_y, along * right + cos * down]  # fmt: skip
    return xp.stack(rows, 1).reshape(-1, 2, 3)

"""Where each pixel of an augmented photo comes from: one matrix a photo, and the blur that shrinking needs.

All functions take numpy's arrays or torch's tensors, on any device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowers_pl.data.ranges import Augmentation

RATIO = 4 / 3  # the widest crop's width by its height; the highest crop's is the inverse


def warp_matrices(uniform: Any, ranges: Augmentation, size: tuple[int, ...]) -> Any:
    """Return the matrix of each photo: of `affine_matrices` and, where there is a crop, from there on to the
    photo that the crop is taken from.

    Args:
        uniform: float (N, ranges.num_draws or more) in [0, 1), of numpy or torch.
        ranges: how far photos may be changed.
        size: height and width of the new photo in pixels.

    Returns:
        float (N, 2, 3), of numpy or torch as `uniform`, from the new photo's coordinates to the old one's,
        both from -1 to 1. A place outside of the crop is looked up in the photo around it.
    """
    matrices = affine_matrices(uniform, ranges, size)
    if ranges.crop == 1:
        return matrices
    left, top, width, height = crop_windows(uniform, ranges.crop)
    matrices = matrices * _module(uniform).stack([width, height], 1)[:, :, None]
    matrices[:, 0, 2] += 2 * left + width - 1
    matrices[:, 1, 2] += 2 * top + height - 1
    return matrices


def crop_windows(uniform: Any, least: float) -> tuple[Any, Any, Any, Any]:
    """Return the crop of each photo, as torchvision's `RandomResizedCrop` draws it, but without trying again.

    The area is uniform from `least` to 1. The logarithm of the ratio of the sides is uniform over that part
    of [3/4, 4/3] in which a crop of this area fits into the photo: of an area that it has accepted,
    torchvision, which rejects crops that do not fit, draws the same. The place is uniform.

    Args:
        uniform: float (N, ALL_DRAWS) in [0, 1), of numpy or torch.
        least: share of the photo's area.

    Returns:
        Left edge, upper edge, width and height, each (N,), as shares of the photo's width or height.
    """
    xp = _module(uniform)
    area = least + (1 - least) * uniform[:, 7]
    ratio = (2 * uniform[:, 8] - 1) * (-xp.log(area)).clip(max=math.log(RATIO))  # its logarithm
    width, height = xp.sqrt(area * xp.exp(ratio)), xp.sqrt(area / xp.exp(ratio))
    return uniform[:, 9] * (1 - width), uniform[:, 10] * (1 - height), width, height


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
    xp = _module(uniform)
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


def pixel_matrices(matrices: np.ndarray, old: tuple[int, ...], new: tuple[int, ...]) -> np.ndarray:
    """Convert matrices to OpenCV's coordinates: pixels from the centre of the first one.

    Args:
        matrices: (N, 2, 3), of `warp_matrices`.
        old: height and width of the photos.
        new: height and width of the new photos.
    """
    old_half, new_half = (np.array([size[1] / 2, size[0] / 2]) for size in (old, new))
    scaled = matrices * old_half[:, None] / np.append(new_half, 1)
    scaled[:, :, 2] += old_half - 0.5 - scaled[:, :, :2] @ (new_half - 0.5)
    return scaled


def blur_passes(ranges: Augmentation, old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """Return how often photos are blurred, by `blur_taps`, before they are warped; 0 where none needs it.

    Photos that are kept at the new size are never blurred, as in the original's recipe.
    """
    if tuple(old) == tuple(new):
        return 0
    scale = max(old[0] / new[0], old[1] / new[1]) * (1 + ranges.zoom)
    return max(0, math.ceil((scale**2 - 2) / 3))  # a pass adds a variance of 1/2 at most


def blur_taps(matrices: Any, passes: int, old: tuple[int, ...], new: tuple[int, ...]) -> Any:
    """Return how strongly each photo is blurred, so that it looks as one that was read at the new size.

    Antialiased shrinking by a factor s, from pixels that were made in the same way, has a kernel of variance
    (s**2 - 1) / 6 pixels, of which bilinear interpolation adds 1/6. The rest is the blur's. Up to s = 1.4 it
    needs none.

    Args:
        matrices: (N, 2, 3), of `warp_matrices`.
        passes: of `blur_passes`.
        old: height and width of the photos.
        new: height and width of the new photos.

    Returns:
        (N, 2): weights across and down of the two neighbours of each pixel, whose own weight is 1 less two of
        these.
    """
    squares = [
        (matrices[:, axis, 0] * (old[1 - axis] / new[1])) ** 2
        + (matrices[:, axis, 1] * (old[1 - axis] / new[0])) ** 2
        for axis in (0, 1)
    ]
    return ((_module(matrices).stack(squares, 1) - 2) / (12 * passes)).clip(min=0)


def _module(values: Any) -> Any:
    return torch if isinstance(values, Tensor) else np

"""Change a photo's brightness, contrast and saturation, as torchvision's `ColorJitter` defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowers_pl.data.ranges import Augmentation

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


def brightness_factors(uniform: Any, ranges: Augmentation) -> Any:
    """Return the factors (N,) that the colours of each photo are multiplied by."""
    return 1 + ranges.brightness * (2 * uniform[:, 6] - 1)


def contrast_factors(uniform: Any, ranges: Augmentation) -> Any:
    """Return the factors (N,) that differences from a photo's mean grey are multiplied by."""
    return 1 + ranges.contrast * (2 * uniform[:, 11] - 1)


def saturation_factors(uniform: Any, ranges: Augmentation) -> Any:
    """Return the factors (N,) that differences from each pixel's grey are multiplied by."""
    return 1 + ranges.saturation * (2 * uniform[:, 12] - 1)


def change_colours(photos: Tensor, uniform: Tensor, ranges: Augmentation) -> Tensor:
    """Change the brightness, then the contrast, then the saturation of each photo, on any device.

    Args:
        photos: (N, 3, H, W), values 0 to 255, uint8 or float.
        uniform: float32 (N, ranges.num_draws or more) in [0, 1).
        ranges: how far photos may be changed.

    Returns:
        float32 (N, 3, H, W), clamped to 0 to 255 after each change.
    """
    pixels = (photos * _each(brightness_factors(uniform, ranges))).to(torch.float32).clamp_(0, 255)
    if ranges.contrast:
        factors = _each(contrast_factors(uniform, ranges))
        mean = _grey(pixels.mean((2, 3), keepdim=True))
        pixels = pixels.mul_(factors).add_((1 - factors) * mean).clamp_(0, 255)
    if ranges.saturation:
        factors = _each(saturation_factors(uniform, ranges))
        grey = _grey(pixels)
        pixels = pixels.mul_(factors).add_((1 - factors) * grey).clamp_(0, 255)
    return pixels


def saturation_matrix(factor: float) -> np.ndarray:
    """Return the matrix (3, 3) that colours are multiplied by to change the saturation."""
    return factor * np.eye(3) + (1 - factor) * np.array(GREY)


def _each(factors: Tensor) -> Tensor:
    return factors.to(torch.float32)[:, None, None, None]


def _grey(colours: Tensor) -> Tensor:
    """Return the grey (N, 1, H, W) of colours (N, 3, H, W)."""
    red, green, blue = colours.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue

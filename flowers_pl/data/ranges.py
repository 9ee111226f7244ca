"""The settings of the augmentation: how far training photos may be changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.draws import ALL_DRAWS, DRAWS

LIMITS = {
    "rotation": (0, 180), "shift": (0, 1), "zoom": (0, 0.99), "brightness": (0, 1),
    "contrast": (0, 1), "saturation": (0, 1), "crop": (0.01, 1), "weak_crop": (0.01, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """Limit how far a training photo may be changed.

    Args:
        rotation: maximum rotation in degrees, in either direction.
        shift: maximum shift in either direction, as a share of the width or, drawn independently, the height.
        zoom: each axis is scaled by 1 - zoom to 1 + zoom, drawn independently.
        brightness: colours are multiplied by 1 - brightness to 1 + brightness.
        flip: mirror half of the photos left to right.
        contrast: differences from the photo's mean grey are multiplied by 1 - contrast to 1 + contrast.
        saturation: differences from each pixel's grey are multiplied by 1 - saturation to 1 + saturation.
        crop: least share of the photo's area in a random crop, which takes the photo's place; its sides have
            a ratio of 3:4 to 4:3. 1 for no crop.
        weak_epochs: number of the last epochs of each stage, by its maximum of epochs, with weak
            augmentation: photos as in validation, but for flip, colours and a crop of at least `weak_crop`.
        weak_crop: what `crop` is raised to in these epochs.

    Raises:
        FlowersError: a value is out of range.

    >>> Augmentation(rotation=10, flip=False, crop=0.35)  # doctest: +ELLIPSIS
    Augmentation(rotation=10, shift=0.1, zoom=0.15, brightness=0.2, flip=False, ...crop=0.35, ...)
    """

    rotation: float = 25.0
    shift: float = 0.1
    zoom: float = 0.15
    brightness: float = 0.2
    flip: bool = True
    contrast: float = 0.0
    saturation: float = 0.0
    crop: float = 1.0
    weak_epochs: int = 0
    weak_crop: float = 0.8

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise FlowersError(
                    f"--data.augmentation.{name} must be from {least} to {most}, not {getattr(self, name)}."
                )
        if self.weak_epochs < 0:
            raise FlowersError(f"--data.augmentation.weak_epochs must be 0 or more, not {self.weak_epochs}.")

    @property
    def num_draws(self) -> int:
        """How many draws each photo needs, see `epoch_draws`."""
        return ALL_DRAWS if self.crop < 1 or self.contrast or self.saturation else DRAWS

    def weakened(self) -> Augmentation:
        """Return the ranges of the last epochs of a stage.

        >>> weak = Augmentation(crop=0.35).weakened()
        >>> weak.crop, weak.rotation, weak.brightness
        (0.8, 0, 0.2)
        """
        return replace(self, rotation=0, shift=0, zoom=0, crop=max(self.crop, self.weak_crop))

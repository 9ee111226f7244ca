"""Photos with the heat maps that explain their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.decoding import resize_photo
from flowers_pl.explain.activation_maps import BATCH, class_activation_maps, copied_network, normalised
from flowers_pl.training.classifier import FlowerClassifier


class Explained(NamedTuple):
    """A photo, its prediction, and the heat map that explains it.

    Args:
        photo: uint8 (3, H, W), RGB, at its own size.
        heat: float32 (h, w), 0 to 1, of any size: the map for `target`.
        probabilities: of each class.
        target: the class that the map is for.
        truth: the class that the photo shows, where known.
    """

    photo: Tensor
    heat: np.ndarray
    probabilities: dict[str, float]
    target: str
    truth: str | None = None

    @property
    def predicted(self) -> str:
        """Return the likeliest class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def wrong(self) -> bool:
        """Say whether the prediction is known to be wrong."""
        return self.truth is not None and self.truth != self.predicted


def explain_photos(
    model: FlowerClassifier,
    photos: Sequence[Tensor],
    truths: Sequence[str | None] | None = None,
    target: str | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    squares: Tensor | None = None,
) -> list[Explained]:
    """Predict photos of any size, and compute the heat maps that explain the predictions.

    >>> import torch
    >>> from flowers_pl import FlowerClassifier
    >>> model = FlowerClassifier(weights=None)
    >>> model.build(["daisy", "rose"], image_size=32)
    >>> (explained,) = explain_photos(model, [torch.zeros(3, 48, 64, dtype=torch.uint8)], target="rose")
    >>> explained.heat.shape, sorted(explained.probabilities)
    ((32, 32), ['daisy', 'rose'])

    Args:
        model: a trained model; it is not changed.
        photos: uint8 (3, H, W) each, RGB.
        truths: the class that each photo shows, where known.
        target: the class that the maps are for; None for each photo's likeliest.
        method: as in `class_activation_maps`.
        layer: likewise.
        squares: uint8 (N, 3, size, size), the photos at the model's size; None to make them of `photos`.

    Raises:
        FlowersError: there is no such target, method or layer.
    """
    if target is not None and target not in model.classes:
        raise FlowersError(f"--target must be one of {', '.join(model.classes)}, not {target!r}.")
    if not photos:
        return []
    if squares is None:
        squares = torch.stack([resize_photo(photo, model.image_size) for photo in photos])
    with copied_network(model) as (network, _), torch.no_grad():
        batches = torch.split(normalised(model, squares), BATCH)
        shares = torch.cat([model.probabilities(batch, network) for batch in batches]).cpu().numpy()
    targets = shares.argmax(1).tolist() if target is None else [model.classes.index(target)] * len(photos)
    heats = class_activation_maps(model, squares, targets, method, layer)
    known = [None] * len(photos) if truths is None else truths
    probabilities = [dict(zip(model.classes, row.tolist(), strict=True)) for row in shares]
    names = [model.classes[index] for index in targets]
    return [Explained(*each) for each in zip(photos, heats, probabilities, names, known, strict=True)]

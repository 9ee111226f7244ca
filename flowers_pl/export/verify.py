"""How far an exported model and the model that it came from agree, and what quantisation costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import plural
from flowers_pl.data.decoding import resize_photo
from flowers_pl.export.load import Exported
from flowers_pl.training.classifier import FlowerClassifier

NEAR_TIE = 0.01  # two classes whose probabilities are no further apart may change places


@dataclass(frozen=True)
class Agreement:
    """How far an exported model and the model that it came from agree.

    Args:
        photos: how many were compared.
        agreeing: for how many the likeliest class is the same.
        near_ties: of the others, how many have their two likeliest classes within `NEAR_TIE`, for the model.
        largest_difference: of any probability of any photo.
    """

    photos: int
    agreeing: int
    near_ties: int
    largest_difference: float

    def __str__(self) -> str:
        return (
            f"on {plural(self.photos, 'validation image')} the checkpoint's class for {self.agreeing}"
            f" ({self.near_ties} of the others near ties), probabilities at most"
            f" {self.largest_difference:.2g} apart"
        )

    def verify(self, tolerance: float = 1e-3) -> None:
        """Raise unless likeliest classes agree, but for near ties, and probabilities are within `tolerance`.

        Raises:
            FlowersError: says how far they are apart, or that there was nothing to compare.
        """
        if not self.photos:
            raise FlowersError("The exported model was not checked, for want of photos; give --data.root.")
        if self.agreeing + self.near_ties < self.photos or not self.largest_difference < tolerance:
            raise FlowersError(
                f"The exported model is not the checkpoint's: {self}, where less than {tolerance:g} is"
                " allowed; do not use it, and report this with the versions of torch and onnxruntime."
            )


@torch.inference_mode()
def check_export(exported: Exported, model: FlowerClassifier, photos: Iterable[Tensor]) -> Agreement:
    """Compare an exported model with its checkpoint, on photos at their own sizes.

    Args:
        exported: does its own resize.
        model: sees each photo as `decode.load_photo` would give it.
        photos: uint8 (3, H, W), RGB, each of any size.
    """
    network = model.eval()
    count = agreeing = near_ties = 0
    largest = 0.0
    for photo in photos:
        resized = resize_photo(photo, model.image_size)[None].to(model.device)
        expected = network(resized).softmax(1)[0].cpu().numpy()
        found = exported(photo[None])[0]
        first, second = np.sort(expected)[::-1][:2]
        same = expected.argmax() == found.argmax()
        count, agreeing = count + 1, agreeing + int(same)
        near_ties += int(not same and first - second <= NEAR_TIE)
        largest = float(np.maximum(largest, np.abs(expected - found).max()))  # unlike max(), keeps NaN
    return Agreement(count, agreeing, near_ties, largest)


class AccuracyLoss(NamedTuple):
    """What quantisation costs, in shares of the photos.

    Args:
        before: accuracy of the float model.
        after: accuracy of the other.
        low: of the 95 % interval of `before - after`.
        high: of the same.
    """

    before: float
    after: float
    low: float
    high: float

    def __str__(self) -> str:
        gain, low, high = (100 * share for share in (self.after - self.before, -self.high, -self.low))
        return (
            f"accuracy {self.before:.2%} in float32, {self.after:.2%} in int8: {gain:+z.2f} points"
            f" (95 % interval {low:+z.2f} to {high:+z.2f})"
        )


def accuracy_loss(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> AccuracyLoss:
    """Compare two models on the same photos, with a paired bootstrap over the photos.

    Args:
        before: float (photos, classes), probabilities of the float model.
        after: the same of the other.
        labels: int (photos,).
    """
    right = [(shares.argmax(1) == labels).astype(int) for shares in (before, after)]
    count = len(labels)
    lost, gained = ((right[0] - right[1] == sign).mean() for sign in (1, -1))
    # Resampling photos and counting is drawing from a multinomial: three numbers a sample, not one a photo.
    samples = np.random.default_rng(0).multinomial(count, [lost, gained, 1 - lost - gained], 10_000)
    low, high = np.quantile((samples[:, 0] - samples[:, 1]) / count, [0.025, 0.975])
    return AccuracyLoss(float(right[0].mean()), float(right[1].mean()), float(low), float(high))

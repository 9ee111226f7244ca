"""Calibration: whether a predicted probability means what it says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15  # as in Guo et al. 2017


class Bins(NamedTuple):
    """Predictions grouped by confidence, in `BINS` bins of equal width from 0 to 1.

    A bin includes its upper edge and excludes its lower one (Guo et al. 2017).

    Args:
        counts: int64 (BINS,): number of images.
        confidence: float64 (BINS,): mean probability of the predicted class; NaN in an empty bin.
        accuracy: float64 (BINS,): share of correct predictions; NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Return the expected calibration error (Guo et al. 2017), 0 to 1.

        It is the mean gap between confidence and accuracy, weighted by the images in each bin.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def bin_predictions(confidence: np.ndarray, correct: np.ndarray) -> Bins:
    """Group predictions by confidence.

    Args:
        confidence: float (N,), 0 to 1: probability of the predicted class.
        correct: bool (N,): whether that class is the true one.
    """
    bins = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    counts, sums, hits = (np.bincount(bins, weights, BINS) for weights in (None, confidence, correct))
    with np.errstate(invalid="ignore"):
        return Bins(counts, sums / counts, hits / counts)

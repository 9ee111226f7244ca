"""Calibration: whether a predicted probability means what it says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15  # as in Guo et al. 2017


class Recalibration(NamedTuple):
    """What a temperature changes: the calibration error in `BINS` bins of equal mass, before and after.

    Args:
        temperature: what logits were divided by.
        before: the error without it, 0 to 1.
        after: with it.
        fitted_here: whether it was fitted on these images, so that `after` is slightly optimistic.
    """

    temperature: float
    before: float
    after: float
    fitted_here: bool


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


def equal_mass_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Compute the expected calibration error, 0 to 1, in `BINS` bins of as many images each.

    Bins of equal width hold nearly all images of a good model in the last one, and few in the others, whose
    gaps are chance (Nixon et al. 2019, "Measuring calibration in deep learning").

    Args:
        confidence: float (N,), 0 to 1: probability of the predicted class.
        correct: bool (N,): whether that class is the true one.
    """
    order = np.argsort(confidence, kind="stable")
    gaps = np.array_split(correct[order].astype(np.float64) - confidence[order], BINS)
    return float(sum(abs(gap.sum()) for gap in gaps) / len(order))


def recalibration(
    probabilities: np.ndarray, correct: np.ndarray, temperature: float, fitted_here: bool
) -> Recalibration:
    """Compare calibrated probabilities with those before the temperature, which follow from them.

    Args:
        probabilities: float64 (N, classes), with the temperature.
        correct: bool (N,): whether the likeliest class is the true one.
        temperature: what logits were divided by.
        fitted_here: whether it was fitted on these images.
    """
    peak = probabilities.max(1)
    # Softmax at T is p, so p ** T, normalised, is softmax at 1; relative to the peak nothing overflows.
    without = 1 / ((probabilities / peak[:, None]) ** temperature).sum(1)
    before, after = (equal_mass_error(confidence, correct) for confidence in (without, peak))
    return Recalibration(temperature, before, after, fitted_here)

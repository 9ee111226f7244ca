"""Classes of unequal size: an epoch drawn, or a loss weighed, so that each class counts the same."""

from __future__ import annotations

from typing import Literal

import numpy as np

Balance = Literal["none", "sampler", "loss"]


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The photos of one epoch, as many of each class, in the order in which they are shown.

    An epoch stays as long as it was. The photos of a class that is too small for its share go round, so that
    their counts differ by one at most; of a class that is too large each epoch takes others. The order is a
    function of the arguments alone.

    Args:
        labels: int64 (N,): classes of the training photos.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 (N,): places of photos; some stand there more than once, others not at all.
    """
    stream = np.random.Philox(key=np.array([seed % 2**64, (epoch << 2) | 3], dtype=np.uint64))

    def shuffled(places: np.ndarray) -> np.ndarray:
        return np.asarray(places[np.argsort(stream.random_raw(len(places)), kind="stable")])

    classes = shuffled(np.unique(labels))  # the first ones get one photo more where N does not divide
    shares = np.full(len(classes), len(labels) // len(classes))
    shares[: len(labels) % len(classes)] += 1
    shown = [
        np.resize(shuffled(np.flatnonzero(labels == label)), share)
        for label, share in zip(classes, shares, strict=True)
    ]
    return shuffled(np.concatenate(shown))


def photo_weights(labels: np.ndarray) -> np.ndarray:
    """What each photo's loss counts, so that all classes count the same: N / (classes * photos of its class).

    Args:
        labels: int64 (N,).

    Returns:
        float64 (N,), 1 on average.
    """
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(len(labels) / (len(counts) * counts[places]))

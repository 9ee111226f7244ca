"""How good a model is on the photos that it was judged on: the numbers, how sure they are, and their text.

All but cross-entropy, top-2 accuracy and calibration follows from the confusion matrix, so that is kept and
the rest worked out from it. The numbers are scikit-learn's, as the tests check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowers_pl.core.errors import FlowersError
from flowers_pl.evaluation.calibration import BINS, Bins, bins_of

LEVEL = 95  # per cent, of the intervals
CAUTION = "These {kind} also chose the checkpoint, so the figures are a little too good."


@dataclass(frozen=True, eq=False)
class Report:
    """What `evaluate` found.

    Precision, recall and F1 are 0 where they are undefined (scikit-learn's `zero_division=0`). Macro averages
    are over the classes that occur among truths or predictions, as scikit-learn's are without `labels`, and
    as torchmetrics' are, so that they agree with the curves of training.

    Args:
        classes: names, in the model's order.
        confusion: int64 (classes, classes): photos; a row for each truth, a column for each prediction.
        top2_accuracy: share of photos whose truth is among the two likeliest classes.
        nll: mean cross-entropy in nats; a probability of 0 counts as float32's smallest, 1e-38.
        bins: for the reliability diagram.
        intervals: 95 % intervals (low, high) of "accuracy" and "macro_f1".
        judged: which photos these were, in words that can follow a number.
        chose_checkpoint: whether these photos chose the epoch that was kept.
        kind: what they are called: "photos", or "drawings".
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    top2_accuracy: float
    nll: float
    bins: Bins
    intervals: dict[str, tuple[float, float]]
    judged: str
    chose_checkpoint: bool
    kind: str = "photos"

    @property
    def photos(self) -> int:
        """How many photos were judged."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """ThreadPlan of right predictions."""
        return float(self.confusion.trace() / self.photos)

    @property
    def support(self) -> np.ndarray:
        """Photos of each class, int64 (classes,)."""
        return np.asarray(self.confusion.sum(1))

    @property
    def per_class(self) -> dict[str, np.ndarray]:
        """The "precision", "recall" and "f1" of each class, float64 (classes,) each."""
        hits, predicted = self.confusion.diagonal(), self.confusion.sum(0)
        return {
            "precision": hits / np.maximum(predicted, 1),
            "recall": hits / np.maximum(self.support, 1),
            "f1": _f1(hits, self.support + predicted),
        }

    @property
    def occurring(self) -> np.ndarray:
        """Which classes the macro averages are over, bool (classes,)."""
        return np.asarray(self.support + self.confusion.sum(0) > 0)

    @property
    def macro(self) -> dict[str, float]:
        """Mean "precision", "recall" and "f1" over the classes that occur."""
        return {name: float(score[self.occurring].mean()) for name, score in self.per_class.items()}

    @property
    def ece(self) -> float:
        """Expected calibration error: how far confidence and accuracy are apart, 0 to 1 (Guo et al. 2017)."""
        return self.bins.ece

    def text(self) -> str:
        """A table for the screen, with what is to be said about its figures."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.photos} {self.judged}."
        if self.chose_checkpoint:
            yield CAUTION.format(kind=self.kind)
        width = max(*map(len, self.classes), len("macro average"))
        row = f"{{:>{width}}}  {{:>9.4f}} {{:>9.4f}} {{:>9.4f}} {{:>9}}"
        yield ""
        yield f"{'':>{width}}  {'precision':>9} {'recall':>9} {'F1':>9} {self.kind:>9}"
        for cells in self._each():
            yield row.format(*cells)
        yield row.format("macro average", *self.macro.values(), self.photos)
        if absent := len(self.classes) - int(self.occurring.sum()):
            yield f"Classes neither true nor predicted, which the macro average leaves out: {absent}."
        yield ""
        yield f"accuracy           {self.accuracy:.4f}  {self._interval('accuracy')}"
        yield f"macro F1           {self.macro['f1']:.4f}  {self._interval('macro_f1')}"
        yield f"top-2 accuracy     {self.top2_accuracy:.4f}"
        yield f"cross-entropy      {self.nll:.4f}"
        yield f"calibration error  {self.ece:.4f}  (ECE, {BINS} bins: 0 is best)"
        yield self._noise()

    def _each(self) -> Iterator[tuple[str, float, float, float, int]]:
        scores = (part.tolist() for part in (*self.per_class.values(), self.support))
        return zip(self.classes, *scores, strict=True)

    def _interval(self, name: str) -> str:
        low, high = self.intervals[name]
        return f"({LEVEL} % interval {low:.4f} to {high:.4f})"

    def _noise(self) -> str:
        if self.accuracy in (0, 1):  # a bootstrap cannot draw what did not happen
            rule_of_three = min(300 / self.photos, 100)  # Hanley & Lippman-Hand 1983
            return (
                f"At {self.photos} {self.kind}, all predicted {'rightly' if self.accuracy else 'wrongly'},"
                f" the interval has no width; the true accuracy may still be {rule_of_three:.1f} points away."
            )
        low, high = self.intervals["accuracy"]
        points = f"{50 * (high - low):.1f} points of accuracy"
        return f"At {self.photos} {self.kind} a difference of less than {points} is noise."

    def as_dict(self) -> dict[str, Any]:
        """The same for a JSON file; empty bins are left out, and `caution` is null where there is none."""
        edges = np.linspace(0, 1, BINS + 1).tolist()
        bins = zip(edges[:-1], edges[1:], *(part.tolist() for part in self.bins), strict=True)
        keys = ("low", "high", "photos", "confidence", "accuracy")
        return {
            "judged": self.judged,
            "caution": CAUTION.format(kind=self.kind) if self.chose_checkpoint else None,
            "photos": self.photos,
            "accuracy": self.accuracy,
            **{f"macro_{name}": score for name, score in self.macro.items()},
            "top2_accuracy": self.top2_accuracy,
            "nll": self.nll,
            "ece": self.ece,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "classes": list(self.classes),
            "per_class": {
                name: {"precision": precision, "recall": recall, "f1": f1, "support": photos}
                for name, precision, recall, f1, photos in self._each()
            },
            "confusion_matrix": self.confusion.tolist(),
            "reliability": [dict(zip(keys, one, strict=True)) for one in bins if one[2]],
        }


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int = 0,
    resamples: int = 2000,
    *,
    judged: str = "photos",
    chose_checkpoint: bool = False,
    kind: str = "photos",
) -> Report:
    """Compare predictions with the truth.

    The prediction is the likeliest class; of classes equally likely the first in order is the likelier one.

    Args:
        probabilities: float (N, classes), 0 to 1, a row for each photo.
        labels: int (N,): numbers of the true classes.
        classes: names, in the order of the columns.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        judged: which photos these are, in words that can follow a number: "validation photos".
        chose_checkpoint: whether these photos chose the epoch that was kept.
        kind: what they are called: "photos", or "drawings".

    Raises:
        FlowersError: there are no photos, or the model's output is not a number.
        ValueError: the arguments do not fit each other.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    _check(probabilities, labels, len(classes))
    photos, predictions = np.arange(len(labels)), probabilities.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    of_truth = probabilities[photos, labels]
    return Report(
        classes=tuple(classes),
        confusion=confusion,
        top2_accuracy=float((likeliest == labels[:, None]).any(1).mean()),
        nll=float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean()),
        bins=bins_of(probabilities.max(1), predictions == labels),
        intervals=_intervals(confusion, seed, resamples),
        judged=judged,
        chose_checkpoint=chose_checkpoint,
        kind=kind,
    )


def _check(probabilities: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if not len(labels):
        raise FlowersError("There is no photo to judge: none could be read; give some that can be.")
    if probabilities.shape != (len(labels), classes) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels do not fit probabilities {probabilities.shape} of {classes} classes")
    if not np.isfinite(probabilities).all():
        raise FlowersError("The model's output is not a number: training diverged; lower its learning rates.")
    if probabilities.min() < 0 or probabilities.max() > 1.001:
        raise ValueError("these are not probabilities; logits need a softmax first")


def _f1(hits: np.ndarray, truths_and_predictions: np.ndarray) -> np.ndarray:
    return np.asarray(2 * hits / np.maximum(truths_and_predictions, 1))


def _intervals(confusion: np.ndarray, seed: int, resamples: int) -> dict[str, tuple[float, float]]:
    """Percentile intervals of a bootstrap over photos (Efron & Tibshirani 1993, chapter 13).

    Accuracy and F1 see no more of a photo than its cell of the confusion matrix, so drawing N photos with
    replacement is drawing the cells' counts from a multinomial distribution: exact, and all at once.
    """
    truth, predicted = np.nonzero(confusion)
    counts, one_hot = confusion[truth, predicted], np.eye(len(confusion))
    photos = counts.sum()
    drawn = np.random.default_rng(seed).multinomial(photos, counts / photos, resamples).astype(np.float64)
    hits = drawn @ (one_hot[truth] * (truth == predicted)[:, None])
    ends = drawn @ (one_hot[truth] + one_hot[predicted])
    scores = {"accuracy": hits.sum(1) / photos, "macro_f1": _f1(hits, ends).sum(1) / (ends > 0).sum(1)}
    tail = (100 - LEVEL) / 2
    limits = {name: np.percentile(score, [tail, 100 - tail]) for name, score in scores.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}

"""Evaluation: metrics of a set of predictions, their intervals, and the report of both.

Everything but cross-entropy, top-2 accuracy and calibration is derived from the confusion matrix. The tests
compare the metrics with scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import printable, text_width
from flowers_pl.evaluation.calibration import BINS, Bins, Recalibration, bin_predictions, recalibration

LEVEL = 95  # per cent, of the intervals
CAUTION = "These images also chose the checkpoint, so the results are slightly optimistic."


@dataclass(frozen=True, eq=False)
class Report:
    """The results of `evaluate`.

    Precision, recall and F1 are 0 where they are undefined (scikit-learn's `zero_division=0`). Macro averages
    are over the classes that occur among truths or predictions, as scikit-learn's are without `labels`, and
    as torchmetrics' are, so they agree with the training curves.

    Args:
        classes: names, in the model's order.
        confusion: int64 (classes, classes): images; a row for each truth, a column for each prediction.
        top2_accuracy: share of images whose truth is among the two likeliest classes.
        nll: mean cross-entropy in nats; a probability of 0 counts as float32's smallest, 1e-38.
        bins: for the reliability diagram.
        intervals: 95 % intervals (low, high) of "accuracy" and "macro_f1".
        evaluated_on: which images these were, in words that can follow a number.
        chose_checkpoint: whether these images chose the epoch that was kept.
        recalibration: what the model's temperature changes; None where it has none.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    top2_accuracy: float
    nll: float
    bins: Bins
    intervals: dict[str, tuple[float, float]]
    evaluated_on: str
    chose_checkpoint: bool
    recalibration: Recalibration | None = None

    @property
    def num_images(self) -> int:
        """Return the number of images evaluated."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Return the share of correct predictions."""
        return float(self.confusion.trace() / self.num_images)

    @property
    def support(self) -> np.ndarray:
        """Return the images of each class, int64 (classes,)."""
        return np.asarray(self.confusion.sum(1))

    @property
    def per_class(self) -> dict[str, np.ndarray]:
        """Return "precision", "recall" and "f1" of each class, float64 (classes,) each."""
        hits, predicted = self.confusion.diagonal(), self.confusion.sum(0)
        return {
            "precision": hits / np.maximum(predicted, 1),
            "recall": hits / np.maximum(self.support, 1),
            "f1": _f1(hits, self.support + predicted),
        }

    @property
    def occurring(self) -> np.ndarray:
        """Return which classes the macro averages are over, bool (classes,)."""
        return np.asarray(self.support + self.confusion.sum(0) > 0)

    @property
    def macro(self) -> dict[str, float]:
        """Return the mean "precision", "recall" and "f1" over the classes that occur."""
        return {name: float(score[self.occurring].mean()) for name, score in self.per_class.items()}

    @property
    def ece(self) -> float:
        """Return the expected calibration error, 0 to 1, where 0 is best (`Bins.ece`)."""
        return self.bins.ece

    def text(self) -> str:
        """Return the report as text: what was evaluated, a table by class, and the overall metrics."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.num_images} {printable(self.evaluated_on)}."
        if self.chose_checkpoint:
            yield CAUTION
        names = [printable(name) for name in (*self.classes, "macro average")]
        width = max(map(text_width, names))
        yield ""
        yield f"{'':>{width}}  {'precision':>9} {'recall':>9} {'F1':>9} {'images':>9}"
        rows = [row[1:] for row in self._class_metrics()]
        for name, row in zip(names, [*rows, (*self.macro.values(), self.num_images)], strict=True):
            precision, recall, f1, count = row
            indent = " " * (width - text_width(name))
            yield f"{indent}{name}  {precision:>9.4f} {recall:>9.4f} {f1:>9.4f} {count:>9}"
        if absent := len(self.classes) - int(self.occurring.sum()):
            yield f"Classes that never occur, which the macro average leaves out: {absent}."
        yield ""
        yield f"accuracy           {self.accuracy:.4f}  {self._interval('accuracy')}"
        yield f"macro F1           {self.macro['f1']:.4f}  {self._interval('macro_f1')}"
        yield f"top-2 accuracy     {self.top2_accuracy:.4f}"
        yield f"cross-entropy      {self.nll:.4f}"
        yield f"calibration error  {self.ece:.4f}  (ECE, {BINS} bins; 0 is best)"
        if self.recalibration is not None:
            temperature, before, after, _ = self.recalibration
            fitted_on = "these" if self.recalibration.fitted_here else "other"
            yield (
                f"In {BINS} bins of equal mass it is {after:.4f}; it was {before:.4f} before the temperature"
                f" of {temperature:.3f}, fitted on {fitted_on} images."
            )
        yield self._margin()

    def _class_metrics(self) -> Iterator[tuple[str, float, float, float, int]]:
        scores = (part.tolist() for part in (*self.per_class.values(), self.support))
        return zip(self.classes, *scores, strict=True)

    def _interval(self, name: str) -> str:
        low, high = self.intervals[name]
        return f"({LEVEL} % interval {low:.4f} to {high:.4f})"

    def _margin(self) -> str:
        if self.accuracy in (0, 1):  # a bootstrap cannot draw what did not happen
            rule_of_three = min(300 / self.num_images, 100)  # Hanley & Lippman-Hand 1983
            return (
                f"All {self.num_images} images were predicted {'correctly' if self.accuracy else 'wrongly'},"
                f" so the interval has no width; the true accuracy may be {rule_of_three:.1f} points away."
            )
        low, high = self.intervals["accuracy"]
        points = f"{50 * (high - low):.1f} points of accuracy"
        return f"With {self.num_images} images, a difference of less than {points} is noise."

    def as_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file; empty bins are left out, and `caution` may be null."""
        edges = np.linspace(0, 1, BINS + 1).tolist()
        bins = zip(edges[:-1], edges[1:], *(part.tolist() for part in self.bins), strict=True)
        keys = ("low", "high", "photos", "confidence", "accuracy")
        return {
            "judged": self.evaluated_on,
            "caution": CAUTION if self.chose_checkpoint else None,
            "photos": self.num_images,
            "accuracy": self.accuracy,
            **{f"macro_{name}": score for name, score in self.macro.items()},
            "top2_accuracy": self.top2_accuracy,
            "nll": self.nll,
            "ece": self.ece,
            **({} if self.recalibration is None else {"calibration": self.recalibration._asdict()}),
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "classes": list(self.classes),
            "per_class": {
                name: {"precision": precision, "recall": recall, "f1": f1, "support": support}
                for name, precision, recall, f1, support in self._class_metrics()
            },
            "confusion_matrix": self.confusion.tolist(),
            "reliability": [dict(zip(keys, row, strict=True)) for row in bins if row[2]],
        }


def evaluate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int = 0,
    resamples: int = 2000,
    *,
    evaluated_on: str = "images",
    chose_checkpoint: bool = False,
    temperature: float | None = None,
    fitted_here: bool = False,
) -> Report:
    """Compare predictions with the truth.

    The prediction is the likeliest class; among classes that are equally likely, the first one.

    >>> import numpy as np
    >>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    >>> report = evaluate(probabilities, np.array([0, 1, 0]), ["daisy", "rose"])
    >>> round(report.accuracy, 3), report.confusion.tolist()
    (0.667, [[1, 1], [0, 1]])

    Args:
        probabilities: float (N, classes), 0 to 1, a row for each image.
        labels: int (N,): index of each image's true class.
        classes: names, in the order of the columns.
        seed: of the bootstrap.
        resamples: number of bootstrap samples.
        evaluated_on: which images these are, in words that can follow a number: "validation images".
        chose_checkpoint: whether these images chose the epoch that was kept.
        temperature: what the model's logits were divided by, where it is calibrated.
        fitted_here: whether the temperature was fitted on these images.

    Raises:
        FlowersError: there are no images, or the model's output is not finite.
        ValueError: the arguments do not fit each other.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    _check(probabilities, labels, len(classes))
    predictions = probabilities.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    correct, changed = predictions == labels, None
    if temperature is not None:
        changed = recalibration(probabilities, correct, temperature, fitted_here)
    of_truth = probabilities[np.arange(len(labels)), labels]
    return Report(
        classes=tuple(classes),
        confusion=confusion,
        top2_accuracy=float((likeliest == labels[:, None]).any(1).mean()),
        nll=float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean()),
        bins=bin_predictions(probabilities.max(1), correct),
        intervals=_intervals(confusion, seed, resamples),
        evaluated_on=evaluated_on,
        chose_checkpoint=chose_checkpoint,
        recalibration=changed,
    )


def _check(probabilities: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if not len(labels):
        raise FlowersError("There is nothing to evaluate: no photo could be read; give photos that can be.")
    if probabilities.shape != (len(labels), num_classes) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels do not fit probabilities {probabilities.shape} of {num_classes} classes")
    if not np.isfinite(probabilities).all():
        raise FlowersError(
            "The model's output is not finite: its training diverged; train again with lower learning rates."
        )
    if probabilities.min() < 0 or probabilities.max() > 1.001:
        raise ValueError("these are not probabilities; logits need a softmax first")


def _f1(hits: np.ndarray, truths_and_predictions: np.ndarray) -> np.ndarray:
    return np.asarray(2 * hits / np.maximum(truths_and_predictions, 1))


def _intervals(confusion: np.ndarray, seed: int, resamples: int) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of a bootstrap over images (Efron & Tibshirani 1993, chapter 13).

    Accuracy and F1 depend on an image only by its cell of the confusion matrix, so drawing N images with
    replacement is drawing the cells' counts from a multinomial distribution: exact, and all at once.
    """
    truth, predicted = np.nonzero(confusion)
    counts, one_hot = confusion[truth, predicted], np.eye(len(confusion))
    total = counts.sum()
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, resamples).astype(np.float64)
    hits = drawn @ (one_hot[truth] * (truth == predicted)[:, None])
    ends = drawn @ (one_hot[truth] + one_hot[predicted])
    scores = {"accuracy": hits.sum(1) / total, "macro_f1": _f1(hits, ends).sum(1) / (ends > 0).sum(1)}
    tail = (100 - LEVEL) / 2
    limits = {name: np.percentile(score, [tail, 100 - tail]) for name, score in scores.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}

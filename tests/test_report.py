"""report.py: the numbers are scikit-learn's and torchmetrics', and the report says how sure they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn import metrics  # type: ignore[import-untyped]
from torchmetrics.functional.classification import multiclass_f1_score

from flowers_pl.core.errors import FlowersError
from flowers_pl.evaluation.calibration import BINS
from flowers_pl.evaluation.report import CAUTION, Report, evaluate

CLOSE = 1e-6


def drawn(
    seed: int, photos: int = 200, classes: int = 5, sharp: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, float64 (photos, classes), that lean to their labels, int64 (photos,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, photos)
    powers = np.exp(generator.normal(size=(photos, classes)) + sharp * np.eye(classes)[labels])
    return powers / powers.sum(1, keepdims=True), labels


def names(classes: int) -> list[str]:
    return [f"class {number}" for number in range(classes)]


def absent(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 is predicted but never true, class 2 true but never predicted, class 3 neither."""
    probabilities, labels = drawn(seed, 60)
    labels[(labels == 1) | (labels == 3)] = 0
    probabilities[:, 2:4] *= 1e-3
    probabilities[0] = (0.1, 0.9, 0, 0, 0)
    return probabilities / probabilities.sum(1, keepdims=True), labels


def ties(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in quarters, so that many are equal."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(4, [0.25] * 4, size=150) / 4, generator.integers(0, 4, 150)


CASES = [
    *(drawn(seed) for seed in range(3)),
    drawn(3, 40, 20),
    drawn(4, 1, 3),
    drawn(5, 30, 2),
    *map(absent, range(3)),
    ties(0),
]


@pytest.mark.parametrize(("probabilities", "labels"), CASES)
def test_scikit_learn_says_the_same(probabilities: np.ndarray, labels: np.ndarray) -> None:
    classes = probabilities.shape[1]
    report = evaluate(probabilities, labels, names(classes), resamples=10)
    predictions = probabilities.argmax(1)
    everything = {"labels": range(classes), "zero_division": 0}
    *each, support = metrics.precision_recall_fscore_support(labels, predictions, **everything)
    macro = metrics.precision_recall_fscore_support(labels, predictions, average="macro", zero_division=0)[:3]

    assert (report.confusion == metrics.confusion_matrix(labels, predictions, labels=range(classes))).all()
    assert report.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions), abs=CLOSE)
    assert report.support.tolist() == support.tolist()
    for name, ours, theirs in zip(("precision", "recall", "f1"), each, macro, strict=True):
        np.testing.assert_allclose(report.per_class[name], ours, rtol=0, atol=CLOSE)
        assert report.macro[name] == pytest.approx(theirs, abs=CLOSE)
    assert report.num_images == len(labels)


@pytest.mark.parametrize(("probabilities", "labels"), CASES)
def test_top_2(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Of equal probabilities scikit-learn takes the last first, we the first: it is told all backwards."""
    classes = probabilities.shape[1]
    if classes == 2:
        assert evaluate(probabilities, labels, names(2)).top2_accuracy == 1
        return
    backwards = classes - 1 - labels
    theirs = metrics.top_k_accuracy_score(backwards, probabilities[:, ::-1], k=2, labels=range(classes))
    assert evaluate(probabilities, labels, names(classes)).top2_accuracy == pytest.approx(theirs, abs=CLOSE)


def test_macro_f1_is_that_of_the_training_curves() -> None:
    probabilities, labels = absent(0)
    theirs = multiclass_f1_score(torch.tensor(probabilities), torch.tensor(labels), 5, average="macro")
    report = evaluate(probabilities, labels, names(5))
    assert report.macro["f1"] == pytest.approx(float(theirs), abs=CLOSE)
    assert report.occurring.tolist() == [True, True, True, False, True]
    assert report.macro["f1"] > report.per_class["f1"].mean() + 0.01
    assert "which the macro average leaves out: 1." in report.text()
    assert "leaves out" not in evaluate(*drawn(0), names(5)).text()


def test_cross_entropy() -> None:
    probabilities, labels = drawn(1)
    theirs = metrics.log_loss(labels, probabilities, labels=range(5))
    assert evaluate(probabilities, labels, names(5)).nll == pytest.approx(theirs, abs=CLOSE)
    hopeless = evaluate(np.array([[1.0, 0.0]]), np.array([1]), names(2))
    assert 87 < hopeless.nll < 88


# ---------------------------------------------------------------- calibration


def plain_ece(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, list[int]]:
    total, counts = 0.0, []
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [
            (max(row), float(row.argmax() == label))
            for row, label in zip(probabilities, labels, strict=True)
            if low < max(row) <= high
        ]
        counts.append(len(inside))
        if inside:
            confidence, right = np.mean(inside, axis=0)
            total += len(inside) / len(labels) * abs(confidence - right)
    return total, counts


@pytest.mark.parametrize(("probabilities", "labels"), CASES)
def test_calibration_error_as_a_plain_loop_finds_it(probabilities: np.ndarray, labels: np.ndarray) -> None:
    report = evaluate(probabilities, labels, names(probabilities.shape[1]), resamples=10)
    error, counts = plain_ece(probabilities, labels)
    assert report.ece == pytest.approx(error, abs=CLOSE)
    assert report.bins.counts.tolist() == counts
    assert (np.isnan(report.bins.accuracy) == (report.bins.counts == 0)).all()


def test_calibration_by_hand() -> None:
    """Ten photos at 0.8, half of them right: 0.3 apart, and in the bin that 0.8 is the upper edge of."""
    report = evaluate(np.tile([0.8, 0.2], (10, 1)), np.arange(10) % 2, names(2))
    assert report.ece == pytest.approx(0.3)
    assert report.bins.counts.nonzero()[0].tolist() == [11]
    assert evaluate(np.array([[1.0, 0.0]]), np.array([0]), names(2)).ece == 0


# ---------------------------------------------------------------- intervals


@pytest.mark.slow
def test_intervals_as_a_plain_bootstrap_finds_them() -> None:
    probabilities, labels = drawn(2, 150)
    predictions = probabilities.argmax(1)
    generator = np.random.default_rng(1)
    scores = []
    for _ in range(1500):
        rows = generator.integers(0, len(labels), len(labels))
        truth, predicted = labels[rows], predictions[rows]
        scores.append(
            (metrics.accuracy_score(truth, predicted), metrics.f1_score(truth, predicted, average="macro"))
        )
    slow = np.percentile(scores, [2.5, 97.5], axis=0)
    fast = evaluate(probabilities, labels, names(5), resamples=8000).intervals
    np.testing.assert_allclose(fast["accuracy"], slow[:, 0], atol=0.012)
    np.testing.assert_allclose(fast["macro_f1"], slow[:, 1], atol=0.012)


def test_intervals_leave_out_classes_that_a_resample_lacks() -> None:
    """Two photos, both right: macro F1 is 1 whichever is drawn; over both classes it would often be 0.5."""
    report = evaluate(np.eye(2), np.arange(2), names(2))
    assert report.intervals == {"accuracy": (1, 1), "macro_f1": (1, 1)}


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """A classifier that is right 80 % of the time, judged 300 times; the share has a deviation of 1.3 %."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        labels = generator.integers(0, 4, 200)
        right = generator.random(200) < 0.8
        probabilities = np.eye(4)[np.where(right, labels, (labels + 1) % 4)]
        low, high = evaluate(probabilities, labels, names(4), resamples=400).intervals["accuracy"]
        held += low <= 0.8 <= high
    assert 0.90 < held / 300 < 0.99


def test_intervals_follow_the_seed() -> None:
    first, again, other = (evaluate(*drawn(0), names(5), seed=seed).intervals for seed in (0, 0, 1))
    assert first == again != other


# ---------------------------------------------------------------- what is said


def report(**said: bool | str) -> Report:
    return evaluate(*drawn(0, 860), names(5), **said)  # type: ignore[arg-type]


def test_the_text_is_a_table() -> None:
    found = report(evaluated_on="validation images", chose_checkpoint=True)
    lines = found.text().splitlines()
    assert lines[:3] == ["860 validation images.", CAUTION, ""]
    for name, precision, recall, f1, support in zip(
        found.classes, *found.per_class.values(), found.support, strict=True
    ):
        row = [*name.split(), f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}", str(support)]
        assert row in [line.split() for line in lines]
    assert {len(line) for line in lines[3:10]} == {len(lines[3])}
    low, high = found.intervals["accuracy"]
    accuracy = next(line for line in lines if line.startswith("accuracy"))
    assert accuracy.split(maxsplit=2)[1:] == [
        f"{found.accuracy:.4f}",
        f"(95 % interval {low:.4f} to {high:.4f})",
    ]
    points = 100 * (high - low) / 2
    assert lines[-1].startswith(f"With 860 images, a difference of less than {points:.1f} points of accuracy")
    assert 2 < points < 4


def test_no_mistake_is_not_taken_for_certainty() -> None:
    text = evaluate(np.eye(3)[np.arange(150) % 3], np.arange(150) % 3, names(3)).text()
    assert "All 150 images were predicted correctly" in text
    assert "may be 2.0 points away" in text
    assert "is noise" not in text


def test_json_says_the_same() -> None:
    found = report(evaluated_on="validation images", chose_checkpoint=True)
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert read["judged"] == "validation images"
    assert read["caution"] == CAUTION
    assert read["photos"] == 860
    assert read["accuracy"] == found.accuracy
    assert read["macro_f1"] == found.macro["f1"]
    assert read["intervals"]["macro_f1"] == list(found.intervals["macro_f1"])
    assert read["confusion_matrix"] == found.confusion.tolist()
    assert list(read["per_class"]) == read["classes"] == names(5)
    assert read["per_class"]["class 2"] == {
        "precision": found.per_class["precision"][2],
        "recall": found.per_class["recall"][2],
        "f1": found.per_class["f1"][2],
        "support": found.support[2],
    }
    gaps = sum(one["photos"] * abs(one["accuracy"] - one["confidence"]) for one in read["reliability"])
    assert gaps / 860 == pytest.approx(read["ece"])
    assert all(one["low"] < one["confidence"] <= one["high"] for one in read["reliability"])


def test_photos_that_chose_nothing_need_no_caution() -> None:
    found = report()
    assert "chose the checkpoint" not in found.text()
    assert found.as_dict()["caution"] is None


# ---------------------------------------------------------------- what cannot be judged


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (np.full((2, 3), 1 / 3), np.array([0, 3])),
        (np.full((2, 3), 1 / 3), np.array([0, -1])),
        (np.full((2, 3), 1 / 3), np.array([0])),
        (np.full((2, 2), 1 / 2), np.array([0, 1])),
        (np.array([[3.0, -1, 0]]), np.array([0])),
    ],
)
def test_arguments_that_do_not_fit(probabilities: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        evaluate(probabilities, labels, names(3))


def test_what_a_user_can_mend() -> None:
    with pytest.raises(FlowersError, match="nothing to evaluate"):
        evaluate(np.zeros((0, 3)), np.zeros(0, int), names(3))
    with pytest.raises(FlowersError, match="diverged"):
        evaluate(np.full((2, 3), np.nan), np.zeros(2, int), names(3))

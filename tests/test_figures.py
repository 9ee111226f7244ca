"""figures.py: nothing is clipped or covered, and marks stand where they should."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from flowers_pl.core.text import plural
from flowers_pl.evaluation.calibration import BINS
from flowers_pl.evaluation.figures import (
    augmentation_sheet,
    confusion_matrix,
    misclassified,
    reliability_diagram,
    training_curves,
)
from flowers_pl.evaluation.report import evaluate

FIVE = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
TWENTY = [
    f"{kind} of the {place}"
    for kind in FIVE
    for place in ("mountains $", "north $hore", "old garden", "hard-leaved pocket orchids")
]


def drawn(figure: Figure) -> list[Text]:
    """The figure's texts, once it is drawn and all of them are seen to lie inside it."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()  # type: ignore[no-untyped-call]
    frame = figure.bbox.padded(1)
    spare = _tick_labels(figure.findobj(Tick)) - _tick_labels(_drawn_ticks(figure))
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in spare]
    texts = [text for text in texts if text.get_visible() and text.get_text()]
    for text in texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1, text
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1, text
    return texts


def _tick_labels(ticks: Iterable[Artist]) -> set[Text]:
    return {label for tick in ticks if isinstance(tick, Tick) for label in (tick.label1, tick.label2)}


def _drawn_ticks(figure: Figure) -> Iterator[Tick]:
    """Ticks outside the limits exist, but are not drawn."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            yield from (
                tick for tick in axis.get_major_ticks() if low - 1e-9 <= tick.get_loc() <= high + 1e-9
            )


def said(figure: Figure) -> list[str]:
    return [text.get_text() for text in drawn(figure)]


def overlapping(texts: Sequence[Text]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (one, other)
        for place, (one, box) in enumerate(boxes)
        for other, second in boxes[:place]
        if min(box.x1, second.x1) - max(box.x0, second.x0) > 1
        and min(box.y1, second.y1) - max(box.y0, second.y0) > 1
    ]


# ---------------------------------------------------------------- training


def table(epochs: int, second_stage: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "stage": 1.0 + (epoch >= second_stage),
            "train_loss": 2 / (epoch + 1),
            "val_loss": 2.2 / (epoch + 1),
            "train_accuracy": 1 - 0.6 / (epoch + 1),
            "val_accuracy": 1 - 0.7 / (epoch + 1),
        }
        for epoch in range(epochs)
    ]


def line(axes: Axes, label: str) -> np.ndarray:
    """Points of the line of that label, (points, 2)."""
    found = [one for one in axes.get_lines() if str(one.get_label()).startswith(label)]
    assert len(found) == 1, label
    return np.asarray(found[0].get_xydata())


def test_curves_show_epochs_from_one_with_boundary_and_best() -> None:
    rows = table(17, 10)
    figure = training_curves(rows, best_epoch=13)
    texts = said(figure)
    assert "Training: 17 epochs" in texts
    assert {"best epoch: 14", "stage 2 begins with epoch 11"} <= set(texts)
    assert len(figure.axes) == 2
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert line(axes, "stage 2")[:, 0].tolist() == [10.5, 10.5]
        assert line(axes, "best epoch").tolist() == [[14, rows[13][f"val_{name}"]]]
        for label, side in (("training", "train"), ("validation", "val")):
            assert line(axes, label).tolist() == [[row["epoch"] + 1, row[f"{side}_{name}"]] for row in rows]
    assert not overlapping(drawn(figure))


def test_curves_with_holes() -> None:
    rows = table(6, 3)
    del rows[3]["stage"], rows[2]["val_loss"], rows[5]["train_accuracy"]
    figure = training_curves(rows, best_epoch=2)
    loss, accuracy = figure.axes
    assert line(loss, "validation")[:, 0].tolist() == [1, 2, 4, 5, 6]
    assert line(accuracy, "training")[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert line(accuracy, "best epoch")[:, 0].tolist() == [3]
    assert "best epoch: 3" in said(figure)
    assert "last epoch: 3" in said(training_curves(rows, best_epoch=2, chosen=False))


@pytest.mark.parametrize(("epochs", "best"), [(0, None), (1, 0), (1, None), (2, 1), (200, 150)])
def test_curves_short_and_long(epochs: int, best: int | None) -> None:
    figure = training_curves(table(epochs, 5), best)
    texts = said(figure)
    assert f"Training: {epochs} epoch{'' if epochs == 1 else 's'}" in texts
    assert ("stage 2 begins with epoch 6" in texts) == (epochs == 200)
    assert any(text.startswith("best epoch") for text in texts) == (best is not None)
    for axes in figure.axes:
        assert all(tick == int(tick) for tick in axes.get_xticks())


# ---------------------------------------------------------------- evaluation


def matrix(classes: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 4, (classes, classes)) + np.diag(generator.integers(20, 300, classes))


@pytest.mark.parametrize("classes", [["a", "b"], FIVE, TWENTY])
def test_confusion_matrix_is_readable(classes: list[str]) -> None:
    counts = matrix(len(classes))
    counts[0, 1] = 0
    figure = confusion_matrix(counts, classes)
    texts = drawn(figure)
    axes = figure.axes[0]
    cells = {(round(x), round(y)): text for text in axes.texts for x, y in [text.get_position()]}
    assert len(cells) == counts.size
    side = axes.get_window_extent().width / len(classes)
    for (column, row), text in cells.items():
        count, share = counts[row, column], counts[row, column] / counts[row].sum()
        assert text.get_text() == (f"{count}\n{share:.0%}" if count else "0")
        assert text.get_window_extent().width < 0.9 * side
        assert text.get_window_extent().height < 0.9 * side
        assert float(text.get_fontsize()) >= 7
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{_cut(name)} ({count})" for name, count in zip(classes, counts.sum(1), strict=True)
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == [_cut(name) for name in classes]
    assert any(f"{counts.sum():,} images" in text.get_text() for text in texts)
    slanted = (
        axes.get_xticklabels() if len(classes) > len(FIVE) else []
    )  # their boxes overlap, the words do not
    assert not overlapping([text for text in texts if text not in slanted])
    for label in slanted:
        assert label.get_rotation() == 45
        assert float(label.get_fontsize()) * figure.dpi / 72 < side * math.sin(math.radians(45))


def _cut(name: str) -> str:
    return (name if len(name) <= 30 else name[:29] + "…").replace("$", "\\$")


def test_a_dollar_is_no_formula() -> None:
    figure = confusion_matrix(matrix(2), ["$x^2$", "${"])
    drawn(figure)
    label = figure.axes[0].get_xticklabels()[0]
    assert label._preprocess_math(label.get_text()) == ("$x^2$", False)  # type: ignore[attr-defined]


def test_confusion_matrix_of_a_class_without_photos() -> None:
    counts = matrix(3)
    counts[1] = 0
    figure = confusion_matrix(counts, FIVE[:3])
    assert "dandelion (0)" in said(figure)
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    assert np.isfinite(shown).all()


def test_very_many_classes_are_drawn_by_colour_alone() -> None:
    figure = confusion_matrix(matrix(60), [f"class {number}" for number in range(60)])
    drawn(figure)
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_xticklabels()) == 60


def test_a_thousand_classes_fit_a_picture() -> None:
    figure = confusion_matrix(matrix(1200), [f"class {number}" for number in range(1200)])
    drawn(figure)
    assert figure.bbox.height < 2000
    assert figure.axes[0].get_xlabel() == "prediction, index of the class"
    assert len(figure.axes[0].get_xticklabels()) < 30


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize("photos", [1, 40, 5000])
def test_reliability_diagram(photos: int) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([0.3] * 5, size=photos)
    report = evaluate(probabilities, generator.integers(0, 5, photos), FIVE)
    figure = reliability_diagram(report)
    texts = drawn(figure)
    above, below = figure.axes
    assert any(f"ECE {report.ece:.3f}, {plural(photos, 'image')}" in text.get_text() for text in texts)
    assert [bar.get_height() for bar in bars(below)] == report.bins.counts.tolist()
    accuracy, gap = bars(above)[:BINS], bars(above)[BINS:]
    np.testing.assert_equal([bar.get_height() for bar in accuracy], report.bins.accuracy)
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in gap], report.bins.confidence)
    middles = [bar.get_x() + bar.get_width() / 2 for bar in accuracy]
    np.testing.assert_allclose(middles, (np.arange(BINS) + 0.5) / BINS)
    numbers = [text for text in below.texts if text.get_text()]
    assert [int(text.get_text()) for text in numbers] == [count for count in report.bins.counts if count]
    assert all(text.get_window_extent().y1 <= below.get_window_extent().y1 for text in numbers)
    assert not overlapping(texts)


# ---------------------------------------------------------------- photos


def photos(count: int, height: int = 32, width: int = 32) -> list[np.ndarray]:
    return [np.full((height, width, 3), 10 * number, np.uint8) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_misclassified_photos(count: int) -> None:
    truths, predictions = TWENTY[:count], TWENTY[4 : 4 + count]
    shares = np.linspace(0.999, 0.3, count).tolist()
    paths = [f"a folder with quite a long name, {number}/{number:012d}_photo.jpg" for number in range(count)]
    figure = misclassified(photos(count), truths, predictions, shares, paths)
    texts = drawn(figure)
    assert not overlapping(texts)
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == count
    for number, axes in enumerate(pictures):
        shown = axes.images[0].get_array()
        assert shown is not None
        assert (shown == 10 * number).all()
        truth, predicted, probability = axes.get_title().splitlines()
        assert truth == f"truth: {_cut(truths[number])}"
        assert predicted == f"predicted: {_cut(predictions[number])}"
        assert probability == f"probability {shares[number]:.1%}"
        assert axes.get_xlabel().endswith(f"{number:012d}_photo.jpg")
    title = f"Misclassified images: {count}" + (", the most confident first" if count > 1 else "")
    assert title in [text.get_text() for text in texts]


def test_no_mistake_is_said() -> None:
    figure = misclassified([], [], [], [])
    assert {"Misclassified images: 0", "All images were predicted correctly."} == set(said(figure))
    assert not figure.axes


def test_misclassified_photos_of_many() -> None:
    some = [*photos(1, 20, 60), *photos(1, 60, 20)]
    figure = misclassified(some, FIVE[:2], FIVE[1:3], [0.9, 0.8], total=85)
    assert "Misclassified images: 2 of 85, the most confident first" in said(figure)
    assert not any(axes.get_xlabel() for axes in figure.axes)


@pytest.mark.parametrize(("count", "draws"), [(1, 1), (3, 7)])
def test_augmentation_sheet(count: int, draws: int) -> None:
    augmented = [[photo + 1 + number for number in range(draws)] for photo in photos(count)]
    figure = augmentation_sheet(photos(count), augmented)
    texts = drawn(figure)
    assert not overlapping(texts)
    assert len(figure.axes) == count * (draws + 1)
    for place, axes in enumerate(figure.axes):
        shown = axes.images[0].get_array()
        assert shown is not None
        assert (shown == 10 * (place // (draws + 1)) + place % (draws + 1)).all()
    assert figure.axes[0].get_title() == "photo"
    assert any(text.get_text().startswith(f"Augmentation: {count} photo") for text in texts)


def test_pyplot_keeps_none_of_them() -> None:
    before = pyplot.get_fignums()
    training_curves(table(3, 1), 2)
    confusion_matrix(matrix(2), FIVE[:2])
    misclassified(photos(1), FIVE[:1], FIVE[1:2], [0.5])
    assert pyplot.get_fignums() == before

"""Pictures of a training and of a judged model: functions from numbers to a matplotlib Figure.

None goes through pyplot, whose global state would keep every figure of a long training alive. Colours are
those of Okabe and Ito (2008), and matplotlib's Blues: the colour-blind can tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flowers_pl.evaluation.calibration import BINS
from flowers_pl.evaluation.report import Report

BLUE, SKY, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "#666666"
DPI = 120
LONGEST = 30  # characters of a name that are shown
CELLS = ((8, 0.85, 10.0), (40, 0.56, 7.5), (math.inf, 0.23, 0.0))  # up to so many classes: inches, points


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def short_name(name: str, longest: int = LONGEST) -> str:
    """A name as matplotlib text: cut where it is long; a dollar sign in it would start a formula."""
    return (name if len(name) <= longest else name[: longest - 1] + "…").replace("$", r"\$")


# ---------------------------------------------------------------- training


def training_curves(rows: Sequence[dict[str, float]], best_epoch: int | None) -> Figure:
    """Loss and accuracy by epoch, with the stages' boundaries and the best epoch.

    Epochs are counted from 0 in the arguments and from 1 in the picture, as on the screen.

    Args:
        rows: of metrics.csv (`tracking.read_table`): `epoch`, `stage`, `train_loss`, `val_loss`,
            `train_accuracy`, `val_accuracy`; others are passed over. Any but `epoch` may be missing.
        best_epoch: the epoch that was kept; None where there is none yet.
    """
    figure = _figure(11, 4.6)
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        _curves(axes, rows, name, best_epoch)
    panels[0].set_ylabel("cross-entropy (nats)")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    if handles := {label: handle for panel in entries for handle, label in panel}:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Training: {len(rows)} epoch{'s' * (len(rows) != 1)}")
    return figure


def _curves(axes: Axes, rows: Sequence[dict[str, float]], name: str, best_epoch: int | None) -> None:
    sides = (("train", "training (mean over the epoch)", BLUE), ("val", "validation", ORANGE))
    for side, label, colour in sides:
        points = [(row["epoch"] + 1, row[f"{side}_{name}"]) for row in rows if f"{side}_{name}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", color=colour, label=label)
            best = [value for epoch, value in points if side == "val" and epoch - 1 == best_epoch]
            if best and best_epoch is not None:
                circle = f"best epoch: {best_epoch + 1}"
                axes.plot(best_epoch + 1, best[0], "o", color="black", mfc="none", ms=11, label=circle)
    staged = [row for row in rows if "stage" in row]
    for before, after in pairwise(staged):
        if before["stage"] != after["stage"]:
            label = f"stage {after['stage']:.0f} begins with epoch {after['epoch'] + 1:.0f}"
            axes.axvline(after["epoch"] + 0.5, color=GREY, linestyle="--", linewidth=1, label=label)
    if rows:
        axes.set_xlim(rows[0]["epoch"] + 0.5, rows[-1]["epoch"] + 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(title=name, xlabel="epoch")
    axes.grid(alpha=0.3)


# ---------------------------------------------------------------- a judged model


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], kind: str = "photos") -> Figure:
    """Photos of each truth by prediction: counts, and their shares of the row, which the colour shows too.

    With more than 40 classes the colour alone: ten thousand numbers take 15 s to draw, and nobody reads them.

    Args:
        matrix: int (classes, classes), a row for each truth.
        classes: names, in that order.
        kind: what is judged: "photos", or "drawings".
    """
    support, names = matrix.sum(1), [short_name(name) for name in classes]
    shares = matrix / np.maximum(support, 1)[:, None]
    cell, size = next((cell, size) for most, cell, size in CELLS if len(classes) <= most)
    side, longest = cell * len(classes), 0.09 * max(map(len, names))
    figure = _figure(max(side + longest + 2.4, 5), side + 1.3 + (0.75 * longest if longest > cell else 0))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    if size:
        _cells(axes, matrix, shares, size)
    axes.set_xticks(range(len(names)), names)
    if longest > cell:
        axes.tick_params("x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{names[row]} ({count})" for row, count in enumerate(support)])
    axes.set(xlabel="prediction", ylabel=f"truth ({kind})")
    photos = support.sum()
    figure.suptitle(f"Confusion matrix: {photos} {kind}, {matrix.trace() / max(photos, 1):.1%} of them right")
    return figure


def _cells(axes: Axes, matrix: np.ndarray, shares: np.ndarray, size: float) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        share = shares[row, column]
        colour = "white" if share > 0.7 else "black" if count else GREY
        text = f"{count}\n{share:.0%}" if count else "0"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def reliability_diagram(report: Report) -> Figure:
    """Whether a probability means what it says: accuracy by confidence, and the photos in each bin below."""
    counts, confidence, accuracy = report.bins
    places, width = (np.arange(BINS) + 0.5) / BINS, 1 / BINS
    figure = _figure(6.4, 7)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.bar(places, accuracy, 0.94 * width, color=SKY, label="accuracy")
    gap = {"facecolor": "none", "edgecolor": ORANGE, "hatch": "///"}
    above.bar(places, confidence - accuracy, 0.94 * width, accuracy, label="gap to mean confidence", **gap)
    above.plot([0, 1], [0, 1], color="black", linestyle="--", label="perfect calibration")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right predictions")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    bars = below.bar(places, counts, 0.94 * width, color=SKY)
    below.bar_label(bars, [str(count) if count else "" for count in counts], padding=2, fontsize=8)
    below.margins(y=0.2)
    below.set(xlabel="probability of the predicted class", ylabel=report.kind)
    mean = np.nansum(counts * confidence) / report.photos
    figure.suptitle(
        f"Reliability: ECE {report.ece:.3f}, {report.photos} {report.kind}\n"
        f"mean probability {mean:.1%}, accuracy {report.accuracy:.1%}"
    )
    return figure


# ---------------------------------------------------------------- photos


def misclassified(
    photos: Sequence[np.ndarray],
    truths: Sequence[str],
    predictions: Sequence[str],
    probabilities: Sequence[float],
    paths: Sequence[str] | None = None,
    total: int | None = None,
    kind: str = "photos",
) -> Figure:
    """Photos that were predicted wrongly, in the order given: the most confident mistake should come first.

    Args:
        photos: uint8 (H, W, 3) each, RGB; of any sizes, any number, none too.
        truths: name of each photo's class.
        predictions: name of the class predicted.
        probabilities: of that class, 0 to 1.
        paths: of the photos, if they are to be shown.
        total: how many mistakes there are in all, if these are only some.
        kind: what was judged: "photos", or "drawings".
    """
    if not photos:
        figure = _figure(6, 2)
        figure.suptitle(f"Misclassified {kind}: 0")
        figure.text(0.5, 0.4, f"All {kind} were predicted rightly.", ha="center", va="center")
        return figure
    columns = min(len(photos), 4)
    lines = -(-len(photos) // columns)
    figure = _figure(max(3 * columns, 5), 3.7 * lines + 0.6)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(photos) :]:
        axes.set_axis_off()
    each = zip(grid.flat, photos, truths, predictions, probabilities, strict=False)
    for place, (axes, photo, truth, predicted, share) in enumerate(each):
        _photo(axes, photo)
        names = f"truth: {short_name(truth)}\npredicted: {short_name(predicted)}"
        axes.set_title(f"{names}\nprobability {share:.1%}", fontsize=9)
        if paths is not None:
            path = paths[place]
            axes.set_xlabel(
                short_name(path if len(path) <= 40 else "…" + path[-39:], 40), fontsize=8, color=GREY
            )
    shown = f"{len(photos)} of {total}" if total is not None and total > len(photos) else str(len(photos))
    order = ", the most confident first" if len(photos) > 1 else ""
    figure.suptitle(f"Misclassified {kind}: {shown}{order}")
    return figure


def augmentation_sheet(original: Sequence[np.ndarray], augmented: Sequence[Sequence[np.ndarray]]) -> Figure:
    """Each photo beside what the augmentation made of it.

    Args:
        original: N photos, uint8 (H, W, 3), RGB.
        augmented: for each of them, K versions of it.
    """
    lines, draws = len(original), len(augmented[0])
    figure = _figure(max(1.5 * (draws + 1), 5), 1.5 * lines + 0.8)
    grid = figure.subplots(lines, draws + 1, squeeze=False)
    for axes, photo, versions in zip(grid, original, augmented, strict=True):
        for panel, pixels in zip(axes, [photo, *versions], strict=True):
            _photo(panel, pixels)
    for place, panel in enumerate(grid[0]):
        panel.set_title(f"draw {place}" if place else "photo", fontsize=9)
    figure.suptitle(
        f"Augmentation: {lines} photo{'s' * (lines != 1)}, {draws} draw{'s' * (draws != 1)} of each"
    )
    return figure


def _photo(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])

"""Figures of a training run and of an evaluated model: functions from numbers to a matplotlib Figure.

None goes through pyplot, whose global state would keep every figure of a long run alive. The colours are
those of Okabe and Ito (2008) and matplotlib's Blues, which people with colour blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flowers_pl.core.text import plural, printable, text_width
from flowers_pl.evaluation.calibration import BINS
from flowers_pl.evaluation.fonts import FontedFigure
from flowers_pl.evaluation.report import Report

BLUE, SKY, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "#666666"
DPI = 120
LONGEST = 30  # characters of a name that are shown
MOST_NAMED = 150  # classes; a larger matrix has numbers on its axes
CELLS = ((8, 0.85, 10.0), (40, 0.56, 7.5), (MOST_NAMED, 0.23, 0.0))  # up to so many classes: inches, points


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, its size in inches."""
    figure = FontedFigure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_pixels(figure: Figure) -> np.ndarray:
    """Draw a figure and return its pixels, uint8 (H, W, 3), RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]


def short_name(name: str, longest: int = LONGEST) -> str:
    """Return a name as matplotlib text: printable, cut where it is long, its dollar signs no formula."""
    text = printable(name)
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def show_image(axes: Axes, pixels: np.ndarray) -> None:
    """Show an image, uint8 (H, W, 3), without ticks."""
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])


# ---------------------------------------------------------------- training


def training_curves(rows: Sequence[dict[str, float]], best_epoch: int | None, chosen: bool = True) -> Figure:
    """Plot loss and accuracy by epoch, with the boundaries of the stages and the best epoch.

    Epochs are counted from 0 in the arguments and from 1 in the figure, as on the screen.

    >>> row = {"epoch": 0, "train_loss": 1.2, "val_loss": 1.1, "train_accuracy": 0.5, "val_accuracy": 0.6}
    >>> figure = training_curves([row, row | {"epoch": 1, "val_loss": 0.9}], best_epoch=1)
    >>> figure.get_suptitle()
    'Training: 2 epochs'

    Args:
        rows: of metrics.csv (`runs.tables.read_table`): `epoch`, `stage`, `train_loss`, `val_loss`,
            `train_accuracy`, `val_accuracy`; other columns are ignored. Any but `epoch` may be missing.
        best_epoch: the epoch that was kept; None where there is none yet.
        chosen: whether it was kept for its validation loss, and not because it was the last one.
    """
    figure = new_figure(11, 4.6)
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        _plot_curves(axes, rows, name, best_epoch, chosen)
    panels[0].set_ylabel("cross-entropy (nats)")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    if handles := {label: handle for panel in entries for handle, label in panel}:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Training: {plural(len(rows), 'epoch')}")
    return figure


def _plot_curves(
    axes: Axes, rows: Sequence[dict[str, float]], name: str, best_epoch: int | None, chosen: bool
) -> None:
    sides = (("train", "training (mean over the epoch)", BLUE), ("val", "validation", ORANGE))
    for side, label, colour in sides:
        points = [(row["epoch"] + 1, row[f"{side}_{name}"]) for row in rows if f"{side}_{name}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", color=colour, label=label)
            best = [value for epoch, value in points if side == "val" and epoch - 1 == best_epoch]
            if best and best_epoch is not None:
                circle = f"{'best' if chosen else 'last'} epoch: {best_epoch + 1}"
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


# ---------------------------------------------------------------- evaluation


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], title: str = "Confusion matrix") -> Figure:
    """Show the images of each true class by prediction: counts, and shares of the row, shown by colour too.

    With more than 40 classes there is only the colour: ten thousand numbers take 15 s to draw, and nobody
    reads them. With more than `MOST_NAMED` the axes have the indices of the classes in place of their names.

    >>> import numpy as np
    >>> figure = confusion_matrix(np.array([[9, 1], [2, 8]]), ["daisy", "rose"])
    >>> figure.get_suptitle()
    'Confusion matrix: 20 images, 85.0% of them correct'

    Args:
        matrix: int (classes, classes), a row for each truth.
        classes: names, in that order.
        title: what the figure's title begins with.
    """
    support, total = matrix.sum(1), int(matrix.sum())
    shares = matrix / np.maximum(support, 1)[:, None]
    named = len(classes) <= MOST_NAMED
    names = [short_name(name) for name in classes] if named else []
    cell, size = next(
        ((cell, size) for most, cell, size in CELLS if len(classes) <= most), (12 / len(classes), 0.0)
    )
    side, longest = cell * len(classes), 0.09 * max(map(text_width, names), default=0)
    figure = new_figure(max(side + longest + 2.4, 5), side + 1.3 + (0.75 * longest if longest > cell else 0))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    if size:
        _write_cells(axes, matrix, shares, size)
    if named:
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), [f"{names[row]} ({count})" for row, count in enumerate(support)])
        if longest > cell:
            axes.tick_params("x", rotation=45)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    what = "" if named else ", index of the class"
    axes.set(xlabel=f"prediction{what}", ylabel=f"truth{what or ' (images)'}")
    correct = matrix.trace() / max(total, 1)
    figure.suptitle(f"{title}: {plural(total, 'image')}, {correct:.1%} of them correct")
    return figure


def _write_cells(axes: Axes, matrix: np.ndarray, shares: np.ndarray, size: float) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        share = shares[row, column]
        colour = "white" if share > 0.7 else "black" if count else GREY
        text = f"{count}\n{share:.0%}" if count else "0"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def reliability_diagram(report: Report) -> Figure:
    """Plot accuracy by confidence, and below it the number of images in each bin.

    >>> import numpy as np
    >>> from flowers_pl import evaluate
    >>> report = evaluate(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]), ["daisy", "rose"])
    >>> print(reliability_diagram(report).get_suptitle())
    Reliability: ECE 0.350, 2 images
    mean probability 75.0%, accuracy 50.0%
    """
    counts, confidence, accuracy = report.bins
    centres, width = (np.arange(BINS) + 0.5) / BINS, 1 / BINS
    figure = new_figure(6.4, 7)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.bar(centres, accuracy, 0.94 * width, color=SKY, label="accuracy")
    gap = {"facecolor": "none", "edgecolor": ORANGE, "hatch": "///"}
    above.bar(centres, confidence - accuracy, 0.94 * width, accuracy, label="gap to mean confidence", **gap)
    above.plot([0, 1], [0, 1], color="black", linestyle="--", label="perfect calibration")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of correct predictions")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    bars = below.bar(centres, counts, 0.94 * width, color=SKY)
    below.bar_label(bars, [str(count) if count else "" for count in counts], padding=2, fontsize=8)
    below.margins(y=0.2)
    below.set(xlabel="probability of the predicted class", ylabel="images")
    mean = np.nansum(counts * confidence) / report.num_images
    figure.suptitle(
        f"Reliability: ECE {report.ece:.3f}, {plural(report.num_images, 'image')}\n"
        f"mean probability {mean:.1%}, accuracy {report.accuracy:.1%}"
    )
    return figure


# ---------------------------------------------------------------- images


def misclassified(
    photos: Sequence[np.ndarray],
    truths: Sequence[str],
    predictions: Sequence[str],
    probabilities: Sequence[float],
    paths: Sequence[str] | None = None,
    total: int | None = None,
) -> Figure:
    """Show images that were misclassified, in the order given: the most confident mistake should come first.

    >>> import numpy as np
    >>> from flowers_pl import draw_flower
    >>> figure = misclassified([np.asarray(draw_flower("rose", 0))], ["rose"], ["tulip"], [0.7])
    >>> figure.get_suptitle()
    'Misclassified images: 1'

    Args:
        photos: uint8 (H, W, 3) each, RGB; of any sizes; any number, none too.
        truths: name of each image's class.
        predictions: name of the class predicted.
        probabilities: of that class, 0 to 1.
        paths: of the images, if they are to be shown.
        total: how many mistakes there are in all, if these are a part of them.
    """
    if not photos:
        figure = new_figure(6, 2)
        figure.suptitle("Misclassified images: 0")
        figure.text(0.5, 0.4, "All images were predicted correctly.", ha="center", va="center")
        return figure
    columns = min(len(photos), 4)
    lines = -(-len(photos) // columns)
    figure = new_figure(max(3 * columns, 5), 3.7 * lines + 0.6)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(photos) :]:
        axes.set_axis_off()
    each = zip(grid.flat, photos, truths, predictions, probabilities, strict=False)
    for index, (axes, photo, truth, predicted, share) in enumerate(each):
        show_image(axes, photo)
        names = f"truth: {short_name(truth)}\npredicted: {short_name(predicted)}"
        axes.set_title(f"{names}\nprobability {share:.1%}", fontsize=9)
        if paths is not None:
            path = printable(paths[index])
            shown = path if len(path) <= 40 else "…" + path[-39:]
            axes.set_xlabel(short_name(shown, 40), fontsize=8, color=GREY)
    part = f"{len(photos)} of {total}" if total is not None and total > len(photos) else str(len(photos))
    order = ", the most confident first" if len(photos) > 1 else ""
    figure.suptitle(f"Misclassified images: {part}{order}")
    return figure


def augmentation_sheet(original: Sequence[np.ndarray], augmented: Sequence[Sequence[np.ndarray]]) -> Figure:
    """Show each photo beside augmented versions of it.

    >>> import numpy as np
    >>> from flowers_pl import draw_flower
    >>> photo = np.asarray(draw_flower("daisy", 0))
    >>> augmentation_sheet([photo], [[photo[::-1], photo[:, ::-1]]]).get_suptitle()
    'Augmentation: 1 photo, 2 draws of each'

    Args:
        original: N photos, uint8 (H, W, 3), RGB.
        augmented: for each of them, K versions of it.
    """
    lines, draws = len(original), len(augmented[0])
    figure = new_figure(max(1.5 * (draws + 1), 5), 1.5 * lines + 0.8)
    grid = figure.subplots(lines, draws + 1, squeeze=False)
    for axes, photo, versions in zip(grid, original, augmented, strict=True):
        for panel, pixels in zip(axes, [photo, *versions], strict=True):
            show_image(panel, pixels)
    for column, panel in enumerate(grid[0]):
        panel.set_title(f"draw {column}" if column else "photo", fontsize=9)
    figure.suptitle(f"Augmentation: {plural(lines, 'photo')}, {plural(draws, 'draw')} of each")
    return figure

"""Figures of heat maps: overlays on photos, and how faithful the maps are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.core.text import plural
from flowers_pl.data.decoding import resize_photo
from flowers_pl.evaluation.figures import new_figure, short_name, show_image
from flowers_pl.explain.explanations import Explained

HEAT_MEANS = "evidence for the class (1: the strongest in this photo)"
STRIP = 256  # rows of a photo that are coloured at a time
DISPLAYED = 1600  # pixels of the longer side of a photo in a figure
ROWS = 50  # of a grid, one for each class
IN_GRID = 160  # pixels a side of a photo there
HEAT = "turbo"  # blue is cold and red is hot, as readers of heat maps expect; smoother than jet


def resize_heat(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map, (h, w), bilinearly: float32 (height, width), 0 to 1."""
    resized = F.interpolate(torch.from_numpy(heat)[None, None], (height, width), mode="bilinear")
    return resized[0, 0].clamp(0, 1).numpy()


def overlay(photo: Tensor, heat: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Blend a map with a photo, at the photo's size.

    Args:
        photo: uint8 (3, H, W), RGB.
        heat: float32 (h, w), 0 to 1.
        strength: share of the heat's colours, 0 to 1.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    pixels, resized = photo.permute(1, 2, 0).numpy(), resize_heat(heat, *photo.shape[1:])
    blended = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), STRIP):  # colours take 32 bytes a pixel
        rows = slice(start, start + STRIP)
        colours = 255 * colormaps[HEAT](resized[rows])[..., :3]
        blended[rows] = (1 - strength) * pixels[rows] + strength * colours + 0.5
    return blended


def _displayed(photo: Tensor) -> Tensor:
    """Return a photo at the size at which a figure shows it at most."""
    height, width = photo.shape[1:]
    scale = DISPLAYED / max(height, width)
    return (
        photo
        if scale >= 1
        else resize_photo(photo, (max(1, round(height * scale)), max(1, round(width * scale))))
    )


def explanation_figure(explained: Explained, title: str = "", most: int = 5) -> Figure:
    """Show a photo, its heat map, both together, and its likeliest classes (`most` of them).

    >>> import numpy as np, torch
    >>> from flowers_pl.explain.explanations import Explained
    >>> photo, heat = torch.zeros(3, 48, 64, dtype=torch.uint8), np.eye(4, dtype=np.float32)
    >>> explained = Explained(photo, heat, {"daisy": 0.2, "rose": 0.8}, target="rose", truth="daisy")
    >>> explanation_figure(explained).get_suptitle()
    'predicted rose, truth daisy'
    """
    photo, (height, width) = _displayed(explained.photo), explained.photo.shape[1:]
    aspect = min(max(width / height, 0.4), 2.5)
    figure = new_figure(3 * 3 * aspect**0.5 + 4, 3 * aspect**-0.5 + 0.9)
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 0.9])
    show_image(axes[0], photo.permute(1, 2, 0).numpy())
    axes[0].set_title(f"photo ({width} x {height})", fontsize=10)
    heat = axes[1].imshow(resize_heat(explained.heat, *photo.shape[1:]), cmap=HEAT, vmin=0, vmax=1)
    axes[1].set(xticks=[], yticks=[])
    axes[1].set_title(f"heat map for\n{short_name(explained.target)}", fontsize=10)
    show_image(axes[2], overlay(photo, explained.heat))
    axes[2].set_title("overlay", fontsize=10)
    figure.colorbar(heat, ax=axes[:3], location="bottom", shrink=0.4, aspect=40, label=HEAT_MEANS)
    _plot_probabilities(axes[3], explained, most)
    truth = "" if explained.truth is None else f", truth {explained.truth}"
    figure.suptitle(short_name(title or f"predicted {explained.predicted}{truth}", 100))
    return figure


def _plot_probabilities(axes: Axes, explained: Explained, most: int) -> None:
    top = sorted(explained.probabilities.items(), key=lambda item: -item[1])[:most]
    names = [short_name(name) for name, _ in top]
    bars = axes.barh(range(len(top)), [share for _, share in top], color="tab:blue")
    axes.bar_label(bars, [f"{share:.1%}" for _, share in top], padding=3)
    axes.set(xlim=(0, 1.3), xticks=[], yticks=range(len(top)), yticklabels=names)
    axes.set_title("probability", fontsize=10, loc="left")
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def grid_figure(
    explained: Sequence[Explained], classes: Sequence[str], title: str = "", columns: int = 4
) -> Figure:
    """Show photos beside their overlays: a row for each class present, correct predictions first.

    >>> import numpy as np, torch
    >>> from flowers_pl.explain.explanations import Explained
    >>> photo, heat = torch.zeros(3, 48, 64, dtype=torch.uint8), np.eye(4, dtype=np.float32)
    >>> explained = Explained(photo, heat, {"daisy": 0.2, "rose": 0.8}, target="rose", truth="daisy")
    >>> grid_figure([explained], ["daisy", "rose"]).axes[0].get_title()
    'wrong: rose 80%'

    Args:
        explained: any number; those beyond `columns` of a class are left out, but half of a row is kept for
            wrong predictions where there are that many.
        classes: the order of the rows. A photo whose class is not known goes to its predicted class.
        title: of the figure.
        columns: the most photos in a row.
    """
    members = {
        name: [each for each in explained if (each.truth or each.predicted) == name] for name in classes
    }
    rows = {name: _choose_for_row(photos, columns) for name, photos in members.items() if photos}
    rows = dict(islice(rows.items(), ROWS))
    across = max(map(len, rows.values()), default=1)
    figure = new_figure(3.4 * across + 0.5, 2 * max(len(rows), 1) + 1.1)
    grid = figure.subplots(max(len(rows), 1), across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, photos) in zip(grid, rows.items(), strict=False):
        side = {"rotation": 90, "ha": "right", "va": "center", "multialignment": "center", "fontsize": 9}
        line[0].text(-0.04, 0.5, fill(short_name(name), 18), transform=line[0].transAxes, **side)
        for axes, each in zip(line, photos, strict=False):
            colour = "black" if each.truth is None else "firebrick" if each.wrong else "darkgreen"
            label = f"{short_name(each.predicted)} {each.probabilities[each.predicted]:.0%}"
            show_image(axes, _side_by_side(each))
            axes.set_title(f"wrong: {label}" if each.wrong else label, color=colour, fontsize=10)
    heat = ScalarMappable(Normalize(0, 1), HEAT)
    figure.colorbar(heat, ax=grid, location="bottom", shrink=0.3, aspect=40, pad=0.02, label=HEAT_MEANS)
    shown = sum(map(len, rows.values()))
    part = f" ({shown} of them shown)" if shown < len(explained) else ""
    figure.suptitle((short_name(title, 100) or "Predictions and the heat maps that explain them") + part)
    return figure


def _choose_for_row(photos: Sequence[Explained], columns: int) -> list[Explained]:
    """Choose at most `columns` photos of a class, correct ones first, with room for wrong ones."""
    wrong = [each for each in photos if each.wrong]
    right = [each for each in photos if not each.wrong]
    right = right[: max(columns - len(wrong), columns - columns // 2)]
    return right + wrong[: columns - len(right)]


def _side_by_side(explained: Explained) -> np.ndarray:
    """Return a photo and its overlay, squashed so that rows are even: uint8 (160, 326, 3)."""
    photo = resize_photo(explained.photo, IN_GRID)
    gap = np.full((160, 6, 3), 255, np.uint8)
    return np.hstack([photo.permute(1, 2, 0).numpy(), gap, overlay(photo, explained.heat)])


def faithfulness_figure(report: dict[str, Any]) -> Figure:
    """Plot deletion and insertion curves, and ROAD, of a method and its baselines.

    Args:
        report: from `faithfulness`.
    """
    figure = new_figure(13, 4.4)
    axes = figure.subplots(1, 3)
    for name, scores in report["maps"].items():
        for panel, curve in zip(axes, ("deletion", "insertion"), strict=False):
            shares = np.linspace(0, 100, len(scores[curve]))
            panel.plot(shares, scores[curve], label=f"{name} (area {scores[f'{curve}_auc']:.3f})")
    for panel, title in zip(axes, ("Deletion: lower is better", "Insertion: higher is better"), strict=False):
        panel.set(title=title, xlabel="pixels, the hottest first (%)", ylabel="mean probability")
        panel.set(ylim=(-0.03, 1.35), yticks=np.linspace(0, 1, 6))  # room for the legend above the curves
        panel.grid(alpha=0.3)
        panel.legend(loc="upper center")
    for index, (name, scores) in enumerate(report["maps"].items()):
        values = [scores["road_most_relevant_first"], scores["road_least_relevant_first"]]
        label = f"{name} ({scores['road']:+.3f})"
        bars = axes[2].bar(np.arange(2) + 0.27 * (index - 1), values, 0.25, label=label)
        axes[2].bar_label(bars, fmt="{:z.2f}", padding=2, fontsize="small")
    axes[2].set(title="ROAD: left lower, right higher is better", ylabel="mean change of probability")
    axes[2].set(xticks=range(2), xticklabels=["hottest pixels hidden", "coldest pixels hidden"])
    axes[2].margins(y=0.12)
    axes[2].axhline(0, color="black", linewidth=0.8)
    axes[2].legend(title="half of the difference", loc="lower right")
    photos = plural(report["photos"], "image")
    figure.suptitle(f"Does the model look where {report['method']} says? {photos}")
    return figure

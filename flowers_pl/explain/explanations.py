"""Photos with what speaks for their class, and pictures of that."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.decoding import resize_photo
from flowers_pl.evaluation.figures import short_name
from flowers_pl.explain.activation_maps import BATCH, class_activation_maps, normalised, stand_in
from flowers_pl.training.classifier import FlowerClassifier

HEAT_MEANS = "speaks for the class (1: the most in this photo)"
HEAT = "turbo"  # blue is cold and red is hot, as readers of heat maps expect; smoother than jet


class Explained(NamedTuple):
    """A photo and what was made of it.

    Args:
        photo: uint8 (3, H, W), RGB, at its own size.
        heat: float32 (h, w), 0 to 1, of any size: the map for `target`.
        probabilities: of each class.
        target: the class that the map is for.
        truth: the class that the photo shows, where known.
    """

    photo: Tensor
    heat: np.ndarray
    probabilities: dict[str, float]
    target: str
    truth: str | None = None

    @property
    def predicted(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


def explain_photos(
    model: FlowerClassifier,
    photos: Sequence[Tensor],
    truths: Sequence[str | None] | None = None,
    target: str | None = None,
    method: str = "gradcam",
    layer: str | None = None,
) -> list[Explained]:
    """Photos of any size with their heat maps and probabilities.

    Args:
        model: a trained model; is left as it was.
        photos: uint8 (3, H, W) each, RGB.
        truths: the class that each photo shows, where known.
        target: the class that the maps are for; None for each photo's likeliest.
        method: as in `class_activation_maps`.
        layer: likewise.

    Raises:
        FlowersError: there is no such target, method or layer.
    """
    if target is not None and target not in model.classes:
        raise FlowersError(f"--target must be one of {', '.join(model.classes)}, not {target!r}.")
    if not photos:
        return []
    squares = torch.stack([resize_photo(photo, model.image_size) for photo in photos])
    with stand_in(model) as (network, _), torch.no_grad():
        parts = torch.split(normalised(model, squares), BATCH)
        shares = torch.cat([network(part).softmax(1) for part in parts]).cpu().numpy()
    targets = shares.argmax(1).tolist() if target is None else [model.classes.index(target)] * len(photos)
    heats = class_activation_maps(model, squares, targets, method, layer)
    known = [None] * len(photos) if truths is None else truths
    named = [dict(zip(model.classes, share.tolist(), strict=True)) for share in shares]
    names = [model.classes[one] for one in targets]
    return [Explained(*parts) for parts in zip(photos, heats, named, names, known, strict=True)]


# ---------------------------------------------------------------- pictures


def heat_at(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map, (h, w), bilinearly resized: float32 (height, width), 0 to 1."""
    resized = F.interpolate(torch.from_numpy(heat)[None, None], (height, width), mode="bilinear")
    return resized[0, 0].clamp(0, 1).numpy()


def overlay(photo: Tensor, heat: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """A map laid over a photo, at the photo's size.

    Args:
        photo: uint8 (3, H, W), RGB.
        heat: float32 (h, w), 0 to 1.
        strength: share of the heat's colours, 0 to 1.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    colours = 255 * colormaps[HEAT](heat_at(heat, *photo.shape[1:]))[..., :3]
    pixels = photo.permute(1, 2, 0).numpy()
    return np.asarray((1 - strength) * pixels + strength * colours + 0.5, dtype=np.uint8)


def explanation_figure(explained: Explained, title: str = "", most: int = 5) -> Figure:
    """A photo, its heat map, both together, and its likeliest classes (`most` of them)."""
    photo, (height, width) = explained.photo, explained.photo.shape[1:]
    aspect = min(max(width / height, 0.4), 2.5)
    figure = Figure(figsize=(3 * 3 * aspect**0.5 + 4, 3 * aspect**-0.5 + 0.9), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 0.9])
    _picture(axes[0], photo.permute(1, 2, 0).numpy(), f"photo ({width} x {height})")
    heat = axes[1].imshow(heat_at(explained.heat, height, width), cmap=HEAT, vmin=0, vmax=1)
    axes[1].set(xticks=[], yticks=[])
    axes[1].set_title(f"heat map for\n{short_name(explained.target)}", fontsize=10)
    _picture(axes[2], overlay(photo, explained.heat), "overlay")
    figure.colorbar(heat, ax=axes[:3], location="bottom", shrink=0.4, aspect=40, label=HEAT_MEANS)
    _bars(axes[3], explained, most)
    truth = "" if explained.truth is None else f", truly {explained.truth}"
    figure.suptitle(short_name(title or f"predicted {explained.predicted}{truth}", 100))
    return figure


def _picture(axes: Axes, pixels: np.ndarray, title: str, colour: str = "black") -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, color=colour, fontsize=10)


def _bars(axes: Axes, explained: Explained, most: int) -> None:
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
    """Photos beside their overlays: a row for each class that is there, right predictions before wrong ones.

    Args:
        explained: any number; those beyond `columns` of a class are left out, but half of a row is kept for
            wrong predictions where there are so many.
        classes: the order of the rows. Photos of unknown class stand in the row of their predicted class.
        title: above all.
        columns: at most so many photos a row.
    """
    rows = {name: [one for one in explained if (one.truth or one.predicted) == name] for name in classes}
    rows = {name: _row(some, columns) for name, some in rows.items() if some}
    across = max(map(len, rows.values()), default=1)
    figure = Figure(figsize=(3.4 * across + 0.5, 2 * max(len(rows), 1) + 1.1), layout="constrained")
    grid = figure.subplots(max(len(rows), 1), across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, some) in zip(grid, rows.items(), strict=False):
        side = {"rotation": 90, "ha": "right", "va": "center", "multialignment": "center", "fontsize": 9}
        line[0].text(-0.04, 0.5, fill(short_name(name), 18), transform=line[0].transAxes, **side)
        for axes, one in zip(line, some, strict=False):
            colour = "black" if one.truth is None else "firebrick" if _wrong(one) else "darkgreen"
            label = f"{short_name(one.predicted)} {one.probabilities[one.predicted]:.0%}"
            _picture(axes, beside(one), f"wrong: {label}" if _wrong(one) else label, colour)
    heat = ScalarMappable(Normalize(0, 1), HEAT)
    figure.colorbar(heat, ax=grid, location="bottom", shrink=0.3, aspect=40, pad=0.02, label=HEAT_MEANS)
    shown = sum(map(len, rows.values()))
    part = f" ({shown} of them shown)" if shown < len(explained) else ""
    figure.suptitle((short_name(title, 100) or "Predictions and the heat maps behind them") + part)
    return figure


def _row(some: Sequence[Explained], columns: int) -> list[Explained]:
    """At most `columns` photos of a class, right ones first, with room for wrong ones."""
    wrong = [one for one in some if _wrong(one)]
    right = [one for one in some if not _wrong(one)]
    right = right[: max(columns - len(wrong), columns - columns // 2)]
    return right + wrong[: columns - len(right)]


def _wrong(one: Explained) -> bool:
    return one.truth is not None and one.truth != one.predicted


def beside(one: Explained) -> np.ndarray:
    """A photo and its overlay side by side, squashed so that rows are even: uint8 (160, 326, 3)."""
    photo = resize_photo(one.photo, 160)
    gap = np.full((160, 6, 3), 255, np.uint8)
    return np.hstack([photo.permute(1, 2, 0).numpy(), gap, overlay(photo, one.heat)])

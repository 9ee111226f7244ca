"""How faithful heat maps are: whether what they mark is what the model's answer hangs on.

A map is faithful if the class's probability falls fast when its hottest pixels go first, and late when its
coldest go first. Two maps that know nothing of the model are judged beside it: smooth noise, and a blob in
the middle, where photographers put flowers.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor, nn

from flowers_pl.explain.activation_maps import BATCH, class_activation_maps, normalised, stand_in
from flowers_pl.explain.relevance import (
    PERCENTILES,
    centred_map,
    deletion,
    insertion,
    random_maps,
    ranks,
    road_scores,
)
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.training.classifier import FlowerClassifier


def faithfulness(
    model: FlowerClassifier | FlowerNet,
    photos: Tensor,
    targets: list[int] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    steps: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge the maps of a method, and of the two baselines, on a sample of photos.

    Takes about four seconds a photo of 160 pixels on one core, nearly all of it for ROAD, which solves a
    linear system of up to 20,480 pixels for each picture that it fills in.

    Args:
        model: is left as it was.
        photos: uint8 (N, 3, S, S), one at least.
        targets: the class that each photo is judged by; None for the likeliest.
        method: as in `heatmaps.class_activation_maps`.
        layer: likewise.
        steps: pixels go in so many equal parts.
        seed: of the noise, of the order of pixels that a map holds equal, and of the randomised heads.

    Returns:
        Plain numbers, for JSON. Under "maps", for the method, "random" and "centre": ROAD (`road_scores`),
        the mean curves of `deletion` and `insertion` with the area under each, and, under
        "better_than_random", the share of photos on which the map beats the random one. Under
        "randomised_head": `rank_correlation`.
    """
    with stand_in(model, layer) as (network, module), torch.no_grad():
        inputs = normalised(model, photos)
        if targets is None:
            targets = torch.cat([network(some) for some in torch.split(inputs, BATCH)]).argmax(1).tolist()
        side = _map_side(network, module, inputs[:1])
        rng = np.random.default_rng(seed)
        noise, ties = (random_maps(len(photos), side, photos.shape[-1], rng) for _ in range(2))
        maps = {
            method: class_activation_maps(model, photos, targets, method, layer),
            "random": noise,
            "centre": np.repeat(centred_map(photos.shape[-1])[None], len(photos), 0),
        }
        ranked = {name: ranks(heat, ties) for name, heat in maps.items()}
        scores = {name: _judge(network, inputs, heat, targets, steps, seed) for name, heat in ranked.items()}
    return {
        "photos": len(photos),
        "method": method,
        "layer": layer,
        "seed": seed,
        "road_percentiles": list(PERCENTILES),
        "maps": {name: _summary(own, scores["random"]) for name, own in scores.items()},
        "randomised_head": rank_correlation(model, photos, targets, method, layer, seed=seed),
    }


def _map_side(network: FlowerNet, layer: nn.Module, one: Tensor) -> int:
    """Cells a side of the layer's feature maps."""
    sides: list[int] = []
    handle = layer.register_forward_hook(lambda _, __, maps: sides.append(maps.shape[-1]))
    network(one)
    handle.remove()
    return sides[0]


def _judge(
    network: FlowerNet, inputs: Tensor, heats: np.ndarray, targets: list[int], steps: int, seed: int
) -> dict[str, np.ndarray]:
    """Each score, float (N,), and each curve, float (N, steps + 1), of a photo."""
    scores = road_scores(network, inputs, heats, targets, seed)
    for name, curve in (("deletion", deletion), ("insertion", insertion)):
        scores[name] = curve(network, inputs, heats, targets, steps)
        scores[f"{name}_auc"] = np.trapezoid(scores[name], dx=1 / steps, axis=1)
    return scores


def _summary(own: dict[str, np.ndarray], random: dict[str, np.ndarray]) -> dict[str, Any]:
    means = {name: np.round(values.mean(0), 6).tolist() for name, values in own.items()}
    gains = {name: own[name] - random[name] for name in ("road", "deletion_auc", "insertion_auc")}
    gains["deletion_auc"] = -gains["deletion_auc"]  # the lower, the better
    return {**means, "better_than_random": {name: float((gain > 0).mean()) for name, gain in gains.items()}}


def rank_correlation(
    model: FlowerClassifier | FlowerNet,
    photos: Tensor,
    targets: list[int],
    method: str = "gradcam",
    layer: str | None = None,
    heads: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """The sanity check of Adebayo et al. 2018: with a random head, maps must change.

    Args:
        model: is left as it was.
        photos: uint8 (N, 3, S, S).
        targets: the class of each photo's map.
        method: as in `heatmaps.class_activation_maps`.
        layer: likewise.
        heads: how many random heads, each on all photos.
        seed: of their weights.

    Returns:
        "spearman": the mean rank correlation over the pixels of a photo's two maps, 1 for the same order;
        "spearman_absolute": the mean of its absolute value; "maps": pairs of maps that these are over;
        "constant": pairs left out because one is the same everywhere, which has no order. The means are None
        without any pair.
    """
    before = class_activation_maps(model, photos, targets, method, layer)
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    for _ in range(heads):
        other = _with_random_head(model, generator)
        after = class_activation_maps(other, photos, targets, method, layer)
        pairs = zip(before, after, strict=True)
        found += [
            spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0
        ]
    return {
        "spearman": float(np.mean(found)) if found else None,
        "spearman_absolute": float(np.mean(np.abs(found))) if found else None,
        "heads": heads,
        "maps": len(found),
        "constant": heads * len(photos) - len(found),
    }


def _with_random_head(model: FlowerClassifier | FlowerNet, generator: torch.Generator) -> FlowerNet:
    """A copy whose head starts anew."""
    network = copy.deepcopy(model.network if isinstance(model, FlowerClassifier) else model)
    with torch.no_grad():
        network.head.weight.copy_(0.01 * torch.randn(network.head.weight.shape, generator=generator))
        network.head.bias.zero_()
    return network


# ---------------------------------------------------------------- picture


def faithfulness_figure(report: dict[str, Any], kind: str = "photos") -> Figure:
    """Deletion and insertion curves, and ROAD, of method and baselines.

    Args:
        report: from `faithfulness`.
        kind: what was judged: "photos", or "drawings".
    """
    figure = Figure(figsize=(13, 4.4), layout="constrained")
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
    for place, (name, scores) in enumerate(report["maps"].items()):
        values = [scores["road_most_relevant_first"], scores["road_least_relevant_first"]]
        bars = axes[2].bar(
            np.arange(2) + 0.27 * (place - 1), values, 0.25, label=f"{name} ({scores['road']:+.3f})"
        )
        axes[2].bar_label(bars, fmt="{:z.2f}", padding=2, fontsize="small")
    axes[2].set(title="ROAD: left lower, right higher is better", ylabel="mean change of probability")
    axes[2].set(xticks=range(2), xticklabels=["hottest pixels hidden", "coldest pixels hidden"])
    axes[2].margins(y=0.12)
    axes[2].axhline(0, color="black", linewidth=0.8)
    axes[2].legend(title="half of the difference", loc="lower right")
    figure.suptitle(f"Does the model look where {report['method']} says? {report['photos']} {kind}")
    return figure

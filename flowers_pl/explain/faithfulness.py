"""Faithfulness of heat maps: whether the pixels that they mark are those that decide the prediction.

A map is faithful if the class's probability falls fast when its hottest pixels are hidden first, and late
when its coldest are. Two baselines that know nothing of the model are measured too: smooth noise, and a blob
in the centre, where photographers put flowers.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import Tensor, nn

from flowers_pl.explain.activation_maps import (
    BATCH,
    class_activation_maps,
    copied_network,
    import_grad_cam,
    normalised,
)
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
    """Measure the faithfulness of a method's maps, and of the two baselines, on a sample of photos.

    This takes about four seconds a photo of 160 pixels on one core, nearly all of it for ROAD, which solves a
    linear system of up to 20,480 pixels for each picture that it fills in.

    Args:
        model: it is not changed.
        photos: uint8 (N, 3, S, S), one at least.
        targets: the class whose probability is measured for each photo; None for the likeliest.
        method: as in `activation_maps.class_activation_maps`.
        layer: likewise.
        steps: number of equal parts in which pixels are hidden.
        seed: of the noise, of the order of pixels that a map holds equal, and of the randomised heads.

    Returns:
        Plain numbers, for JSON. Under "maps", for the method, "random" and "centre": ROAD (`road_scores`),
        the mean curves of `deletion` and `insertion` with the area under each, and, under
        "better_than_random", the share of photos on which the map beats the random one. Under
        "randomised_head": `rank_correlation`.

    Raises:
        FlowersError: OpenCV, which ROAD needs, is not there.
    """
    import_grad_cam("--faithfulness")
    with copied_network(model, layer) as (network, module), torch.no_grad():
        inputs = normalised(model, photos)
        if targets is None:
            targets = torch.cat([network(batch) for batch in torch.split(inputs, BATCH)]).argmax(1).tolist()
        side = _map_side(network, module, inputs[:1])
        rng = np.random.default_rng(seed)
        noise, ties = (random_maps(len(photos), side, photos.shape[-1], rng) for _ in range(2))
        maps = {
            method: class_activation_maps(model, photos, targets, method, layer),
            "random": noise,
            "centre": np.repeat(centred_map(photos.shape[-1])[None], len(photos), 0),
        }
        ranked = {name: ranks(heat, ties) for name, heat in maps.items()}
        scores = {
            name: _measure(network, inputs, heat, targets, steps, seed) for name, heat in ranked.items()
        }
    return {
        "photos": len(photos),
        "method": method,
        "layer": layer,
        "seed": seed,
        "road_percentiles": list(PERCENTILES),
        "maps": {name: _summary(own, scores["random"]) for name, own in scores.items()},
        "randomised_head": rank_correlation(model, photos, targets, method, layer, seed=seed),
    }


def _map_side(network: FlowerNet, layer: nn.Module, photo: Tensor) -> int:
    """Return the side of the layer's feature maps, in cells."""
    sides: list[int] = []
    handle = layer.register_forward_hook(lambda _, __, maps: sides.append(maps.shape[-1]))
    network(photo)
    handle.remove()
    return sides[0]


def _measure(
    network: FlowerNet, inputs: Tensor, heats: np.ndarray, targets: list[int], steps: int, seed: int
) -> dict[str, np.ndarray]:
    """Return each score, float (N,), and each curve, float (N, steps + 1)."""
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
    """Compare maps with those of a random head, from which they must differ (Adebayo et al. 2018).

    Args:
        model: it is not changed.
        photos: uint8 (N, 3, S, S).
        targets: the class of each photo's map.
        method: as in `activation_maps.class_activation_maps`.
        layer: likewise.
        heads: number of random heads, each on all photos.
        seed: of their weights.

    Returns:
        "spearman": the mean rank correlation over the pixels of a photo's two maps, 1 for the same order;
        "spearman_absolute": the mean of its absolute value; "maps": the number of pairs that these are over;
        "constant": pairs left out because one is the same everywhere, which has no order. The means are None
        without any pair.
    """
    before = class_activation_maps(model, photos, targets, method, layer)
    generator = torch.Generator().manual_seed(seed)
    correlations: list[float] = []
    for _ in range(heads):
        other = _with_random_head(model, generator)
        after = class_activation_maps(other, photos, targets, method, layer)
        pairs = zip(before, after, strict=True)
        correlations += [
            spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0
        ]
    return {
        "spearman": float(np.mean(correlations)) if correlations else None,
        "spearman_absolute": float(np.mean(np.abs(correlations))) if correlations else None,
        "heads": heads,
        "maps": len(correlations),
        "constant": heads * len(photos) - len(correlations),
    }


def _with_random_head(model: FlowerClassifier | FlowerNet, generator: torch.Generator) -> FlowerNet:
    """Return a copy whose head has random weights."""
    network = copy.deepcopy(model.network if isinstance(model, FlowerClassifier) else model)
    with torch.no_grad():
        network.head.weight.copy_(0.01 * torch.randn(network.head.weight.shape, generator=generator))
        network.head.bias.zero_()
    return network

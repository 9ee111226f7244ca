"""Scores of how well heat maps mark the pixels that decide a prediction, and baseline maps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur  # type: ignore[import-untyped]

from flowers_pl.explain.activation_maps import BATCH
from flowers_pl.network.mobilenet import FlowerNet

PERCENTILES = (20, 50, 80)  # the library's nine would take three times as long


# ---------------------------------------------------------------- baselines


def random_maps(count: int, side: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw uniform noise, (side, side), and resize it as maps are: float32 (count, size, size)."""
    cells = torch.from_numpy(rng.random((count, 1, side, side), dtype=np.float32))
    return F.interpolate(cells, (size, size), mode="bilinear")[:, 0].numpy()


def centred_map(size: int) -> np.ndarray:
    """Return a Gaussian blob, its standard deviation a quarter of the side: float32 (size, size)."""
    distance = (np.arange(size) - (size - 1) / 2) / (size / 4)
    return np.exp(-(distance[:, None] ** 2 + distance**2) / 2).astype(np.float32)


def ranks(heats: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Replace the values of maps by their ranks: no two equal, evenly spread from 0 to 1.

    The library hides what is at or above a percentile: where a tenth of a map is 0, as after Grad-CAM's ReLU,
    "the hottest 90 %" is the whole photo. With ranks every map hides equally many pixels. Among pixels that a
    map holds equal, another map decides.

    Args:
        heats: float (N, H, W).
        ties: float (N, H, W), decides among equal pixels.

    Returns:
        float32 (N, H, W).
    """
    ranked = np.empty(heats.shape, np.float32)
    for index, (heat, tie) in enumerate(zip(heats, ties, strict=True)):
        order = np.lexsort((tie.ravel(), heat.ravel()))
        ranked[index].reshape(-1)[order] = np.linspace(0, 1, heat.size, dtype=np.float32)
    return ranked


# ---------------------------------------------------------------- scores


def road_scores(
    network: FlowerNet, inputs: Tensor, heats: np.ndarray, targets: list[int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Compute ROAD (Rong et al. 2022): the change of probability when pixels are filled in from neighbours.

    Args:
        network: from `activation_maps.copied_network`.
        inputs: float32 (N, 3, S, S), normalised.
        heats: float32 (N, S, S), from `ranks`.
        targets: the class whose probability is measured for each photo.
        seed: of the noise that hides how a pixel was filled in.

    Returns:
        Each float32 (N,), the mean over `PERCENTILES`: "road_most_relevant_first" (the lower, the better),
        "road_least_relevant_first" and "road", half of their difference (the higher, the better).
    """
    from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirstAverage, ROADMostRelevantFirstAverage
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    wanted = [ClassifierOutputSoftmaxTarget(target) for target in targets]
    parts = [slice(start, start + BATCH) for start in range(0, len(inputs), BATCH)]
    scores = []
    with torch.random.fork_rng(devices=[]):  # the library draws its noise from the global generator
        torch.default_generator.manual_seed(seed)
        for averages in (ROADMostRelevantFirstAverage, ROADLeastRelevantFirstAverage):
            score = averages(list(PERCENTILES))
            scores.append(np.concatenate([score(inputs[i], heats[i], wanted[i], network) for i in parts]))
    most, least = scores
    return {"road_most_relevant_first": most, "road_least_relevant_first": least, "road": (least - most) / 2}


def deletion(
    network: FlowerNet, inputs: Tensor, heats: np.ndarray, targets: list[int], steps: int
) -> np.ndarray:
    """Measure the probability while pixels turn to the mean colour, hottest first: float32 (N, steps + 1).

    Petsiuk et al. 2018 (RISE), section 4.3.
    """
    return _curves(network, inputs, heats, targets, steps, lambda photo: (photo, torch.zeros_like(photo)))


def insertion(
    network: FlowerNet, inputs: Tensor, heats: np.ndarray, targets: list[int], steps: int
) -> np.ndarray:
    """Measure the probability while a blurred photo gets its pixels back: float32 (N, steps + 1).

    As `deletion`, the hottest first. The blur's standard deviation is a sixteenth of the side; the paper's, 5
    of 224 pixels, leaves flowers recognisable.
    """
    sigma = inputs.shape[-1] / 16
    kernel = 2 * int(3 * sigma) + 1

    def ends(photo: Tensor) -> tuple[Tensor, Tensor]:
        return gaussian_blur(photo, [kernel, kernel], [sigma, sigma]), photo

    return _curves(network, inputs, heats, targets, steps, ends)


def _curves(
    network: FlowerNet,
    inputs: Tensor,
    heats: np.ndarray,
    targets: list[int],
    steps: int,
    ends: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> np.ndarray:
    """Measure the probability of the target as one picture turns into another, the hottest pixels first."""
    shares = torch.linspace(0, 1, steps + 1, device=inputs.device)[:, None, None, None]
    curves = []
    for photo, heat, target in zip(inputs, torch.from_numpy(heats).to(inputs.device), targets, strict=True):
        first, last = ends(photo)
        mixed = torch.where(heat > 1 - shares, last, first)
        mixed[-1] = last  # the coldest pixel's rank is 0, which is not above 0
        curves.append(network(mixed).softmax(1)[:, target])
    return torch.stack(curves).cpu().numpy()

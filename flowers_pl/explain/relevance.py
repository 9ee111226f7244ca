"""Scores of how well heat maps tell what a model's answer hangs on, and maps that know nothing of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirstAverage, ROADMostRelevantFirstAverage
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur  # type: ignore[import-untyped]

from flowers_pl.explain.activation_maps import BATCH
from flowers_pl.network.mobilenet import FlowerNet

PERCENTILES = (20, 50, 80)  # the library's nine would take three times as long


# ---------------------------------------------------------------- maps that know nothing of the model


def random_maps(count: int, side: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform noise of a map's resolution, (side, side), resized as maps are: float32 (count, size, size)."""
    cells = torch.from_numpy(rng.random((count, 1, side, side), dtype=np.float32))
    return F.interpolate(cells, (size, size), mode="bilinear")[:, 0].numpy()


def centred_map(size: int) -> np.ndarray:
    """A Gaussian blob in the middle, its standard deviation a quarter of the side: float32 (size, size)."""
    place = (np.arange(size) - (size - 1) / 2) / (size / 4)
    return np.exp(-(place[:, None] ** 2 + place**2) / 2).astype(np.float32)


def ranks(heats: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Maps by rank: the same order of pixels, no two equal, evenly spread from 0 to 1.

    The library hides what is at or above a percentile: where a tenth of a map is 0, as after Grad-CAM's ReLU,
    "the hottest 90 %" is the whole photo. With ranks every map hides equally many pixels. Where a map holds
    pixels equal it has no opinion, and another one decides.

    Args:
        heats: float (N, H, W).
        ties: float (N, H, W), decides among equals.

    Returns:
        float32 (N, H, W).
    """
    found = np.empty(heats.shape, np.float32)
    for place, (heat, tie) in enumerate(zip(heats, ties, strict=True)):
        order = np.lexsort((tie.ravel(), heat.ravel()))
        found[place].reshape(-1)[order] = np.linspace(0, 1, heat.size, dtype=np.float32)
    return found


# ---------------------------------------------------------------- scores


def road_scores(
    network: FlowerNet, inputs: Tensor, heats: np.ndarray, targets: list[int], seed: int = 0
) -> dict[str, np.ndarray]:
    """ROAD (Rong et al. 2022): the change of probability when pixels are filled in from their neighbours.

    Args:
        network: from `heatmaps.stand_in`.
        inputs: float32 (N, 3, S, S), normalised.
        heats: float32 (N, S, S), from `ranks`.
        targets: the class that each photo is judged by.
        seed: of the noise that hides how a pixel was filled in.

    Returns:
        Each float32 (N,), the mean over `PERCENTILES`: "road_most_relevant_first" (the lower, the better),
        "road_least_relevant_first" and "road", half of their difference (the higher, the better).
    """
    wanted = [ClassifierOutputSoftmaxTarget(one) for one in targets]
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
    """Probability while pixels turn to the mean colour, the hottest first: float32 (N, steps + 1).

    Petsiuk et al. 2018 (RISE), section 4.3.
    """
    return _curves(network, inputs, heats, targets, steps, lambda photo: (photo, torch.zeros_like(photo)))


def insertion(
    network: FlowerNet, inputs: Tensor, heats: np.ndarray, targets: list[int], steps: int
) -> np.ndarray:
    """Probability while a blurred photo gets its pixels back, the hottest first: float32 (N, steps + 1).

    As `deletion`. The blur's standard deviation is a sixteenth of the side; the paper's, 5 of 224 pixels,
    leaves flowers recognisable.
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
    """Probability of the target as the first picture turns into the second, the hottest pixels first."""
    shares = torch.linspace(0, 1, steps + 1, device=inputs.device)[:, None, None, None]
    curves = []
    for photo, heat, target in zip(inputs, torch.from_numpy(heats).to(inputs.device), targets, strict=True):
        first, last = ends(photo)
        mixed = torch.where(heat > 1 - shares, last, first)
        mixed[-1] = last  # the coldest pixel's rank is 0, which is not above 0
        curves.append(network(mixed).softmax(1)[:, target])
    return torch.stack(curves).cpu().numpy()

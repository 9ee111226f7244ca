"""Pooled features of many photos: what the backbone sees in them, on threads that each compute alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowers_pl.core.system import available_cores
from flowers_pl.network.fast_frozen import FrozenPart


def pooled_features(
    frozen: FrozenPart,
    read: Callable[[np.ndarray], Tensor],
    places: np.ndarray,
    workers: int | None = None,
    shown: bool = False,
) -> Tensor:
    """Pooled features of the backbone, float32 (N, 1280), on the CPU.

    Args:
        frozen: the whole backbone.
        read: gives photos by their places, uint8 (n, 3, size, size), where `frozen` computes.
        places: int64 (N,).
        workers: threads; None for as many as there are cores.
        shown: show a progress bar.
    """
    parts = [places[start : start + frozen.chunk] for start in range(0, len(places), frozen.chunk)]
    before = torch.get_num_threads()
    found = []
    try:
        with (
            ThreadPoolExecutor(
                workers or available_cores(), initializer=torch.set_num_threads, initargs=(1,)
            ) as threads,
            tqdm(
                total=len(places), desc="Looking at photos", unit="photo", leave=False,
                disable=None if shown else True,
            ) as bar,
        ):  # fmt: skip
            for some in threads.map(lambda part: frozen(read(part)).float().cpu(), parts):
                found.append(some)
                bar.update(len(some))
    finally:
        torch.set_num_threads(before)
    return torch.cat(found)

"""Compute the pooled features of many photos, on threads of one core each."""

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
    indices: np.ndarray,
    workers: int | None = None,
    shown: bool = False,
) -> Tensor:
    """Compute pooled features of the backbone, float32 (N, 1280), on the CPU.

    Args:
        frozen: the whole backbone.
        read: returns photos by their indices, uint8 (n, 3, size, size), on the device of `frozen`.
        indices: int64 (N,).
        workers: number of threads; None for the number of cores.
        shown: whether to show a progress bar.
    """
    chunks = [indices[start : start + frozen.chunk] for start in range(0, len(indices), frozen.chunk)]
    num_threads = torch.get_num_threads()
    parts = []
    try:
        with (
            ThreadPoolExecutor(
                workers or available_cores(), initializer=torch.set_num_threads, initargs=(1,)
            ) as threads,
            tqdm(
                total=len(indices), desc="Computing features", unit="photo", leave=False,
                disable=None if shown else True,
            ) as bar,
        ):  # fmt: skip
            for part in threads.map(lambda chunk: frozen(read(chunk)).float().cpu(), chunks):
                parts.append(part)
                bar.update(len(part))
    finally:
        torch.set_num_threads(num_threads)
    return torch.cat(parts)

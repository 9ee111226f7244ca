"""Frozen features of decoded photos: what the ImageNet backbone sees in them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowers_pl.cache import cores
from flowers_pl.fast import FrozenPart
from flowers_pl.mobilenet import FlowerNet


def frozen_features(
    network: FlowerNet, pixels: np.ndarray, rows: np.ndarray, workers: int | None = None
) -> Tensor:
    """Pooled features of the backbone, float32 (N, 1280).

    Each thread computes alone, as in `ahead.py`. In float32: an audit finds the same on every machine.

    Args:
        network: in evaluation mode; is not changed.
        pixels: uint8 (rows, size, size, 3), see `cache.DecodedPhotos`.
        rows: int64 (N,), which of them.
        workers: threads; None for as many as there are cores.
    """
    frozen = FrozenPart(network, torch.float32, pixels.shape[1], whole=True)
    chunks = [rows[start : start + frozen.chunk] for start in range(0, len(rows), frozen.chunk)]
    before = torch.get_num_threads()
    try:
        with (
            ThreadPoolExecutor(
                workers or cores(), initializer=torch.set_num_threads, initargs=(1,)
            ) as threads,
            tqdm(total=len(rows), desc="Looking at photos", unit="photo", leave=False, disable=None) as bar,
        ):
            found = []
            for some in threads.map(lambda chunk: frozen(_photos(pixels, chunk)), chunks):
                found.append(some)
                bar.update(len(some))
    finally:
        torch.set_num_threads(before)
    return torch.cat(found)


def _photos(pixels: np.ndarray, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2)

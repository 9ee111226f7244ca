"""Draw the random numbers of an epoch: the order of the photos, and what is done to each of them.

Philox is counter-based (Salmon et al. 2011): its n-th number is a function of its key, its counter and n. The
key holds the seed, the epoch and the number of a stream, so what a photo gets is a function of (seed, epoch,
photo) alone. `sampling.balanced_order` has stream 3 from its beginning, `shard_order` a block of stream 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DRAWS = 7  # per photo: rotation, shift right, shift down, zoom across, zoom down, flip, brightness
ALL_DRAWS = 13  # and the crop's area, ratio and place across and down, contrast, saturation
BITS = 24  # of each draw: as many as float32 holds


class EpochDraws(NamedTuple):
    """All random numbers of one epoch.

    Args:
        order: int64 (num_photos,), the order in which photos are shown.
        draws: int32 (num_photos, DRAWS or ALL_DRAWS), uniform in [0, 2**BITS), for `augment`; integers,
            because a Trainer's precision would round floats.
        keys: int64 (num_photos,), seeds of each photo's dropout mask.
    """

    order: np.ndarray
    draws: np.ndarray
    keys: np.ndarray


def epoch_draws(seed: int, epoch: int, num_photos: int, num_draws: int = DRAWS) -> EpochDraws:
    """Draw the random numbers of one epoch.

    Row i of `draws` and `keys` is a function of (seed, epoch, i) and of nothing else: each array has a stream
    of its own, and so have the draws after the first `DRAWS`. The numbers depend neither on how many photos
    there are nor on whether further draws are wanted.

    Args:
        seed: of the run.
        epoch: from 0.
        num_photos: how many are trained on.
        num_draws: for each photo: `DRAWS`, or `ALL_DRAWS` where `Augmentation.num_draws` says so.

    >>> few, many = epoch_draws(seed=0, epoch=3, num_photos=2), epoch_draws(seed=0, epoch=3, num_photos=9)
    >>> few.draws.shape, bool((few.draws == many.draws[:2]).all())
    ((2, 7), True)
    """
    draws = _integers(_stream(seed, epoch, 1), num_photos, DRAWS)
    if num_draws > DRAWS:
        further = _integers(_stream(seed, epoch, 3, block=1), num_photos, num_draws - DRAWS)
        draws = np.concatenate([draws, further], axis=1)
    return EpochDraws(
        order=np.argsort(_stream(seed, epoch, 0).random_raw(num_photos), kind="stable"),
        draws=draws,
        keys=_stream(seed, epoch, 2).random_raw(num_photos).view(np.int64),
    )


def shard_order(seed: int, epoch: int, num_shards: int) -> np.ndarray:
    """Draw the order in which an epoch reads the shards of a pack: int64 (num_shards,).

    >>> sorted(shard_order(seed=0, epoch=1, num_shards=4).tolist())
    [0, 1, 2, 3]
    """
    return np.argsort(_stream(seed, epoch, 0, block=1).random_raw(num_shards), kind="stable")


def _stream(seed: int, epoch: int, number: int, block: int = 0) -> np.random.Philox:
    """Return a stream of an epoch; its blocks are 2**192 counts apart, so they never meet."""
    key = np.array([seed % 2**64, (epoch << 2) | number], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, block], dtype=np.uint64))


def _integers(stream: np.random.Philox, num_photos: int, each: int) -> np.ndarray:
    raw = stream.random_raw(num_photos * each) >> np.uint64(64 - BITS)
    return raw.astype(np.int32).reshape(num_photos, each)

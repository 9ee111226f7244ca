"""A loader that prepares batches ahead: reading, decoding, augmenting and the frozen part of the network, on
threads.

Each thread computes alone, on a part of a batch, while the main thread trains on the batch before. On two
cores that is faster than both cores working on each operation in turn: no thread waits for another at every
operation, and a part's maps fit a core's cache (benchmarks/README.md). What a batch holds does not depend on
the threads.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, get_native_id
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowers_pl.data.batches import Batch, BatchKey, BatchSampler, join

TURN = 2e-4  # seconds that a thread may keep Python to itself; the default of 5e-3 makes the others wait
YIELDS = 10  # how much lower the threads' priority is
AHEAD = 2  # batches under way beside the one that is trained on


class FrozenStart(Protocol):
    """The frozen start of a network, as far as those who run it ahead of training must know it.

    `network.fast_frozen.FrozenPart` is one.
    """

    chunk: int  # photos at a time on one core
    share: float  # of the network's convolutions that are frozen
    pools: bool  # whether all are, so that pooled features come out

    def __call__(self, photos: Tensor) -> Tensor:
        """Compute the features of photos, (N, 3, H, W), values 0 to 255."""
        ...


class ThreadPlan(NamedTuple):
    """Who computes what while batches are prepared.

    Args:
        threads: how many prepare batches; 0 where the calling thread does.
        own_cores: on how many cores the calling thread computes while they do.
        part: photos of a part of a batch.
    """

    threads: int
    own_cores: int
    part: int


class PrefetchLoader:
    """Batches in the sampler's order, each put together from parts that threads prepare.

    Args:
        sampler: tells what stands in each batch.
        photos: makes a batch of a key.
        prepare: what is done to a part of a batch on its thread.
        share: tells, when iteration starts, who computes what.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        photos: Dataset[Batch],
        prepare: Callable[[Batch], Batch],
        share: Callable[[], ThreadPlan],
    ) -> None:
        self.keys, self.photos, self.prepare, self.share = sampler, photos, prepare, share

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Batch]:
        threads, own_cores, size = self.share()
        if threads == 0:
            yield from (join([self._make(part) for part in _parts(key, size)]) for key in self.keys)
            return
        before, turn = torch.get_num_threads(), sys.getswitchinterval()
        workers = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        under_way: deque[list[Future[Batch]]] = deque()
        try:
            _compute_alone(workers, threads)
            torch.set_num_threads(own_cores)
            sys.setswitchinterval(TURN)
            for key in self.keys:
                under_way.append([workers.submit(self._make, part) for part in _parts(key, size)])
                if len(under_way) > AHEAD:
                    yield _joined(under_way)
            while under_way:
                batch = _joined(under_way)
                if not under_way:  # what follows an epoch, validation, has all cores again
                    torch.set_num_threads(before)
                yield batch
        finally:
            torch.set_num_threads(before)
            sys.setswitchinterval(turn)
            workers.shutdown(wait=True, cancel_futures=True)

    def _make(self, key: BatchKey) -> Batch:
        return self.prepare(self.photos[key])


def _parts(key: BatchKey, size: int) -> list[BatchKey]:
    starts = range(0, max(1, len(key.rows)), size)
    return [key.part(slice(start, start + size)) for start in starts]


def _joined(under_way: deque[list[Future[Batch]]]) -> Batch:
    return join([part.result() for part in under_way.popleft()])


def _compute_alone(workers: ThreadPoolExecutor, threads: int) -> None:
    """Give each thread one core for its operations: the number is a thread's own, but a new thread starts
    with the number set last. Where threads compete, the calling one goes first: all wait for it in the
    end."""
    together = Barrier(threads)

    def alone() -> None:
        torch.set_num_threads(1)
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(
                os.PRIO_PROCESS, get_native_id(), min(19, os.getpriority(os.PRIO_PROCESS, 0) + YIELDS)
            )
        together.wait()

    for started in [workers.submit(alone) for _ in range(threads)]:
        started.result()

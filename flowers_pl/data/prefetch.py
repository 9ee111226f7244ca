"""A loader that prefetches batches: threads read them and do to them whatever can be done before training.

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
from torch.utils.data import Dataset

from flowers_pl.data.batches import Batch, join
from flowers_pl.data.sampling import BatchKey

SWITCH_INTERVAL = (
    2e-4  # seconds that a thread may keep Python to itself; the default of 5e-3 makes the others wait
)
NICENESS = 10  # added to that of the calling thread
PREFETCHED = 2  # batches under way beside the one that is trained on


class ThreadPlan(NamedTuple):
    """Which threads prepare batches, and in which parts.

    Args:
        threads: how many prepare batches; 0 where the calling thread does.
        own_cores: on how many cores the calling thread computes while they do.
        part: photos in a part of a batch.

    >>> ThreadPlan(threads=2, own_cores=1, part=8)
    ThreadPlan(threads=2, own_cores=1, part=8)
    """

    threads: int
    own_cores: int
    part: int


class BatchKeys(Protocol):
    """The keys of batches, in order: a `BatchSampler`, or a list."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __iter__(self) -> Iterator[BatchKey]:
        """Return them one by one."""
        ...


class PrefetchLoader:
    """Batches in the sampler's order, each put together from parts that threads prepare.

    Args:
        sampler: says which photos are in each batch.
        dataset: makes a batch of a key.
        prepare: is applied to each part of a batch, on its thread.
        plan: returns, when iteration starts, the threads to use.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from flowers_pl import draw_flower
    >>> from flowers_pl.data.batches import PhotoFiles
    >>> from flowers_pl.data.sampling import BatchSampler
    >>> names = [f"{number}.png" for number in range(3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number, name in enumerate(names):
    ...         draw_flower("rose", number, size=40).save(Path(folder, name))
    ...     photos = PhotoFiles(Path(folder), names, size=32)
    ...     plan = ThreadPlan(threads=2, own_cores=1, part=1)
    ...     loader = PrefetchLoader(BatchSampler(3, batch_size=2), photos, lambda batch: batch, lambda: plan)
    ...     [tuple(batch.photos.shape) for batch in loader]
    [(2, 3, 32, 32), (1, 3, 32, 32)]
    """

    def __init__(
        self,
        sampler: BatchKeys,
        dataset: Dataset[Batch],
        prepare: Callable[[Batch], Batch],
        plan: Callable[[], ThreadPlan],
    ) -> None:
        self.keys, self.dataset, self.prepare, self.plan = sampler, dataset, prepare, plan
        # An attribute `sampler` would make Lightning take this for a DataLoader.

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Batch]:
        threads, own_cores, size = self.plan()
        if threads == 0:
            yield from (join([self._make(part) for part in _parts(key, size)]) for key in self.keys)
            return
        num_threads, interval = torch.get_num_threads(), sys.getswitchinterval()
        workers = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        under_way: deque[list[Future[Batch]]] = deque()
        try:
            _compute_alone(workers, threads)
            torch.set_num_threads(own_cores)
            sys.setswitchinterval(SWITCH_INTERVAL)
            for key in self.keys:
                under_way.append([workers.submit(self._make, part) for part in _parts(key, size)])
                if len(under_way) > PREFETCHED:
                    yield _joined(under_way)
            while under_way:
                batch = _joined(under_way)
                if not under_way:  # what follows an epoch, validation, has all cores again
                    torch.set_num_threads(num_threads)
                yield batch
        finally:
            torch.set_num_threads(num_threads)
            sys.setswitchinterval(interval)
            workers.shutdown(wait=True, cancel_futures=True)

    def _make(self, key: BatchKey) -> Batch:
        return self.prepare(self.dataset[key])


def _parts(key: BatchKey, size: int) -> list[BatchKey]:
    starts = range(0, max(1, len(key.rows)), size)
    return [key.part(slice(start, start + size)) for start in starts]


def _joined(under_way: deque[list[Future[Batch]]]) -> Batch:
    return join([part.result() for part in under_way.popleft()])


def _compute_alone(workers: ThreadPoolExecutor, threads: int) -> None:
    """Give each thread one core for its operations: the number is a thread's own, but a new thread starts
    with the number set last. Where threads compete, the calling one goes first: all wait for it in the
    end."""
    all_started = Barrier(threads)

    def compute_alone() -> None:
        torch.set_num_threads(1)
        if sys.platform == "linux":  # where a thread has a priority of its own
            niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
            os.setpriority(os.PRIO_PROCESS, get_native_id(), niceness)
        all_started.wait()

    for started in [workers.submit(compute_alone) for _ in range(threads)]:
        started.result()

"""Measure each part of the program by itself, on this machine's CPU: photos per second, share of the ceiling.

    python -m benchmarks.throughput PHOTOS --weights FILE [--precision 32]

The ceiling is the rate at which all cores multiply matrices in that precision, measured first; the share is
a part's floating-point operations per second, divided by the ceiling.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.watching import anonymous, machine
from flowers_pl import (
    Batch,
    BatchKey,
    BatchSampler,
    FlowerClassifier,
    FlowersDataModule,
    FrozenPart,
    PrefetchLoader,
    ThreadPlan,
    TrainedPart,
    augment,
    best_precision,
    load_photo,
    load_weights,
)
from flowers_pl.data.packed import order_by_shards

SECONDS = 3.0  # for each part
Part = Callable[[], int]  # processes photos and returns how many


def on_threads(part: Part, threads: int) -> float:
    """Return the photos per second of several threads, each on one core."""
    done = [0.0] * threads

    def work(index: int) -> None:
        torch.set_num_threads(1)
        part()
        start, photos = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            photos += part()
        done[index] = photos / (time.perf_counter() - start)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done)


def flops(part: Callable[[], object]) -> int:
    """Count the floating-point operations of a part."""
    with FlopCounterMode(display=False) as counter:
        part()
    return int(counter.get_total_flops())


def ceiling(dtype: torch.dtype, threads: int) -> float:
    """Measure the floating-point operations per second of matrix products that fit a core's cache."""
    left, right = torch.rand(800, 960).to(dtype), torch.rand(960, 320).to(dtype)

    def multiply() -> int:
        torch.mm(left, right)
        return 1

    return on_threads(multiply, threads) * 2 * 800 * 960 * 320


def pipeline(
    data: FlowersDataModule, frozen: FrozenPart, step: Callable[[Batch], None], share: ThreadPlan
) -> float:
    """Return the photos per second of an epoch: reading, augmentation, frozen part and training step."""

    def prepare(batch: Batch) -> Batch:
        assert batch.draws is not None
        photos = augment(batch.photos, batch.draws, data.augmentation)
        return batch._replace(photos=photos[:0], features=frozen(photos))

    reading = order_by_shards(data.train_photos)
    sampler = BatchSampler(len(data.train_photos), data.batch_size, seed=0, reading=reading)
    start, photos = 0.0, 0
    for index, batch in enumerate(PrefetchLoader(sampler, data.train_photos, prepare, lambda: share)):
        step(batch)
        if index == 5:
            start = time.perf_counter()
        photos += len(batch.labels) if index > 5 else 0
    return photos / (time.perf_counter() - start)


def main() -> None:
    """Measure all parts and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument(
        "--weights", required=True, help="a state_dict of torchvision's mobilenet_v2, or its name"
    )
    parser.add_argument(
        "--precision", choices=["bf16", "32"], default=best_precision("cpu").partition("-")[0]
    )
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as cache:
        data = FlowersDataModule(args.photos, cache_dir=cache)
        start = time.perf_counter()
        data.prepare_data()
        built = time.perf_counter() - start
        data.setup("fit")
        model = FlowerClassifier(weights=None)
        model.build(data.classes, data.image_size)
        load_weights(model.network.backbone, args.weights)
        peak = ceiling(dtype, threads)
        print(f"{machine()}; torch {torch.__version__}; {args.precision}; {threads} threads")
        print(f"ceiling: {peak / 1e9:.0f} GFLOP/s")
        photos = len(data.train_photos) + len(data.val_photos)
        row("decode all photos into the cache, with duplicates' fingerprints", photos / built)
        measure(data, model, dtype, threads, peak)
    print(f"anonymous memory at the end: {anonymous(os.getpid()) / 2**30:.2f} GiB")


def measure(
    data: FlowersDataModule, model: FlowerClassifier, dtype: torch.dtype, threads: int, peak: float
) -> None:
    """Print the rows of all parts but the building of the cache."""
    network, size = model.network, data.image_size
    paths = [Path(data.root) / photo.path for photo in data.reported_photos[:64]]
    rows = np.random.default_rng(0).permutation(len(data.train_photos))
    frozen = {stage: _frozen(network, dtype, size, stage) for stage in (1, 2)}
    part = frozen[1].chunk
    batch = data.train_photos[BatchKey(0, rows[:part], part, rows[:part])]
    assert batch.draws is not None
    draws = batch.draws
    augmented = augment(batch.photos, draws, data.augmentation)

    def decode() -> int:
        for path in paths:
            load_photo(path, size)
        return len(paths)

    def read() -> int:
        return len(data.train_photos.read(rows[:part]))

    def change() -> int:
        return len(augment(batch.photos, draws, data.augmentation))

    row("read and resize a photo's file", on_threads(decode, threads))
    row("read from the cache", on_threads(read, threads))
    row("augment", on_threads(change, threads))
    for stage in (1, 2):
        each = flops(partial(network.backbone[: 15 if stage == 2 else 19], torch.rand(1, 3, size, size)))
        rate = on_threads(partial(_run, frozen[stage], augmented), threads)
        row(f"frozen part, stage {stage}", rate, rate * each / peak)
    numbers = torch.arange(32)
    for stage in (1, 2):
        step = _step(network, frozen[stage], 1e-3 if stage == 1 else 1e-4, stage)
        features = frozen[stage](augmented.repeat(-(-32 // part), 1, 1, 1)[:32])
        labels = numbers % len(data.classes)
        ready = Batch(features, labels, numbers, 32, keys=numbers, features=features)
        row(f"trained part, a step of stage {stage}, one core", on_threads(partial(_train, step, ready), 1))
        own = 1 if stage == 1 else max(1, threads // 2)
        share = ThreadPlan(threads if stage == 1 else threads - own + 1, own, part)
        row(f"stage {stage}, whole step, without Lightning", pipeline(data, frozen[stage], step, share))


def _run(frozen: FrozenPart, photos: torch.Tensor) -> int:
    return len(frozen(photos))


def _train(step: Callable[[Batch], None], batch: Batch) -> int:
    step(batch)
    return len(batch.labels)


def _frozen(network: torch.nn.Module, dtype: torch.dtype, size: int, stage: int) -> FrozenPart:
    network.train_top_layers(30 if stage == 2 else 0)  # type: ignore[operator]
    return FrozenPart(network, dtype, size)  # type: ignore[arg-type]


def _step(network: torch.nn.Module, frozen: FrozenPart, rate: float, stage: int) -> Callable[[Batch], None]:
    network.train_top_layers(30 if stage == 2 else 0)  # type: ignore[operator]
    trained = TrainedPart(network.train(), frozen)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(
        [weight for weight in network.parameters() if weight.requires_grad], rate, fused=True
    )

    def step(batch: Batch) -> None:
        assert batch.features is not None
        optimizer.zero_grad()
        F.cross_entropy(trained(batch.features, batch.keys), batch.labels).backward()
        optimizer.step()

    return step


def row(name: str, rate: float, share: float | None = None) -> None:
    """Print a line of the table."""
    print(f"| {name} | {rate:,.0f} | {'' if share is None else f'{share:.0%}'} |", flush=True)


if __name__ == "__main__":
    main()

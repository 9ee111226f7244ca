"""Train a teacher on some of the photos, and let it judge the others."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.augmentation import augment
from flowers_pl.data.batches import Batch, CachedPhotos
from flowers_pl.data.draws import epoch_draws
from flowers_pl.data.prefetch import PrefetchLoader, ThreadPlan
from flowers_pl.data.ranges import Augmentation
from flowers_pl.data.sampling import BatchKey
from flowers_pl.teaching.networks import Teacher
from flowers_pl.training.schedule import rate_factor

log = logging.getLogger(__name__)
HEAD_FACTOR = 3.0  # of the head's learning rate, which starts from nothing
WARMUP = 0.1  # share of the steps
WEIGHT_DECAY = 0.02  # of matrices and convolution kernels
SMOOTHING = 0.1  # of the labels
CLIP = 5.0  # largest norm of the gradient
AVERAGE = 0.99  # decay of the running average of the weights


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained.

    Args:
        epochs: over the photos.
        batch_size: photos a step.
        rate: largest learning rate of the layers below the head.
        seed: of order, augmentation and dropout.
        size: pixels a side of the network's input.
        ranges: how far photos may be changed; less in its last `weak_epochs`.
        device: that computes.
        half: whether convolutions and matrix products are done in bfloat16.
        workers: threads that prepare batches; None for as many as help, 0 for none.
    """

    epochs: int
    batch_size: int
    rate: float
    seed: int
    size: int
    ranges: Augmentation
    device: torch.device
    half: bool
    workers: int | None


def train(teacher: Teacher, photos: CachedPhotos, members: np.ndarray, recipe: Recipe, name: str) -> Teacher:
    """Train all layers of a teacher, and return the running average of its weights.

    AdamW with warm-up, then a cosine to zero; label smoothing; batch norm in evaluation mode. Order and
    augmentation are functions of (seed, epoch, photo); dropout is a function of the seed.

    Args:
        teacher: on the device; changed in place.
        photos: as they are kept for the augmentation.
        members: int64 (M,): which of them to train on, in ascending order.
        recipe: how.
        name: of what is trained, for the log.

    Raises:
        FlowersError: a loss is not finite.
    """
    optimizer = _optimizer(teacher, recipe.rate)
    average = copy.deepcopy(teacher).eval()
    steps = recipe.epochs * -(-len(members) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, steps, WARMUP, "cosine")
    )
    step = 0
    with torch.random.fork_rng([recipe.device] if recipe.device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        for epoch in range(recipe.epochs):
            started, total = time.monotonic(), torch.zeros((), device=recipe.device)
            teacher.train()
            for batch in _augmented(photos, _keys(photos, members, epoch, recipe), epoch, recipe):
                loss = _step(teacher, batch, optimizer, recipe)
                schedule.step()
                total += loss * len(batch.labels)
                step += 1
                _follow(average, teacher, min(AVERAGE, (1 + step) / (10 + step)))
            mean = float(total) / len(members)
            if not math.isfinite(mean):
                raise FlowersError(
                    f"--teacher: the loss of {name} is not finite in epoch {epoch + 1}; give a lower"
                    " --learning_rate, or --precision 32-true."
                )
            speed = len(members) / (time.monotonic() - started)
            log.info(
                "%s, epoch %d of %d: loss %.4f, %.0f photos/s.", name, epoch + 1, recipe.epochs, mean, speed
            )
    return average


def _optimizer(teacher: Teacher, rate: float) -> torch.optim.Optimizer:
    head = {id(weight) for weight in teacher.head.parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for weight in teacher.parameters():
        groups.setdefault((id(weight) in head, weight.dim() > 1), []).append(weight)
    return torch.optim.AdamW(
        [
            {
                "params": weights,
                "lr": rate * (HEAD_FACTOR if is_head else 1),
                "weight_decay": WEIGHT_DECAY if is_matrix else 0.0,
            }
            for (is_head, is_matrix), weights in groups.items()
        ]
    )


def _keys(photos: CachedPhotos, members: np.ndarray, epoch: int, recipe: Recipe) -> list[BatchKey]:
    """Return the batches of an epoch; each photo has the draws that it would have among all photos."""
    order = epoch_draws(recipe.seed, epoch, len(photos)).order
    order = order[np.isin(order, members)]
    rows = (order[start : start + recipe.batch_size] for start in range(0, len(order), recipe.batch_size))
    return [BatchKey(epoch, batch, len(batch), batch) for batch in rows]


def _augmented(photos: CachedPhotos, keys: list[BatchKey], epoch: int, recipe: Recipe) -> Iterator[Batch]:
    """Yield batches, augmented on the loader's threads on a CPU, else on the device."""
    on_cpu = recipe.device.type == "cpu"
    weak = recipe.epochs - epoch <= recipe.ranges.weak_epochs
    ranges = recipe.ranges.weakened() if weak else recipe.ranges

    def change(batch: Batch) -> Batch:
        assert batch.draws is not None
        return batch._replace(photos=augment(batch.photos, batch.draws, ranges, recipe.size))

    for batch in PrefetchLoader(
        keys, photos, change if on_cpu else lambda batch: batch, lambda: _plan(recipe)
    ):
        yield batch if on_cpu else change(move_data_to_device(batch, recipe.device))


def _plan(recipe: Recipe) -> ThreadPlan:
    """Choose the threads: on a CPU training takes all cores, and one thread keeps ahead of it."""
    cores = torch.get_num_threads()
    few = 0 if cores == 1 else 1
    most = cores if recipe.workers is None else recipe.workers
    return ThreadPlan(min(most, few) if recipe.device.type == "cpu" else most, cores, 8)


def _step(teacher: Teacher, batch: Batch, optimizer: torch.optim.Optimizer, recipe: Recipe) -> Tensor:
    """Take one step, and return the loss before it."""
    with torch.autocast(recipe.device.type, torch.bfloat16, enabled=recipe.half):
        logits = teacher(batch.photos)
    loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=SMOOTHING)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(teacher.parameters(), CLIP)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def _follow(average: Teacher, teacher: Teacher, decay: float) -> None:
    """Move the running average towards the weights."""
    for mean, weight in zip(average.parameters(), teacher.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


@torch.inference_mode()
def judge(teacher: Teacher, photos: CachedPhotos, members: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the probabilities of photos, averaged with those of their mirror images.

    Args:
        teacher: on the device.
        photos: at the network's size.
        members: int64 (M,): which of them to judge.
        recipe: says on which device, and in which precision.

    Returns:
        float64 (M, num_classes).
    """
    teacher.eval()
    parts: list[Tensor] = []
    for start in range(0, len(members), 2 * recipe.batch_size):
        rows = members[start : start + 2 * recipe.batch_size]
        pixels = photos.read(rows).to(recipe.device)
        with torch.autocast(recipe.device.type, torch.bfloat16, enabled=recipe.half):
            both = torch.stack([teacher(pixels), teacher(pixels.flip(-1))])
        parts.append(both.double().softmax(2).mean(0).cpu())
    return torch.cat(parts).numpy()

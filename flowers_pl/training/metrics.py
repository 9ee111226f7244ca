"""Compute the loss and the metrics of one side exactly, on any number of ranks.

torchmetrics objects count every photo once; `self.log(..., sync_dist=True)` does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

NUM_BATCHES = 64  # counted at once: each time takes 0.6 ms, in which prefetching threads wait for Python


@contextmanager
def _plain_counts() -> Iterator[None]:
    """Let torchmetrics count by `torch.bincount`, which is exact for whole numbers on any device.

    Where deterministic algorithms are wanted it (1.9.0) compares each photo with each pair of classes, in
    memory: 37 GB for 4,096 photos of 1,000 classes.
    """
    wanted, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted, warn_only=warns)


class MeanLoss(Metric):
    """The mean loss over all photos of all batches and ranks.

    torchmetrics' MeanMetric does not do: with `nan_strategy="disable"` (1.9.0) it ignores the weights, so a
    short last batch or a rank with fewer photos counts too much; with its other strategies it drops a NaN,
    which should be seen, or waits for the device at each step.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, losses: Tensor, count: int) -> None:
        """Add the sum of the losses of `count` photos."""
        self.total += losses
        self.count += count

    def compute(self) -> Tensor:
        """Return the mean so far."""
        return self.total / self.count


class SideMetrics(nn.Module):
    """Mean loss, accuracy, and macro precision, recall and F1 since the last reset.

    Confusions are whole numbers, so it does not matter which batches are counted together. Losses are summed
    batch by batch, so that a resumed run sums them in the same order.

    Args:
        side: 'train', 'val' or 'test', the prefix of the metrics' names.
        num_classes: number of classes.
    """

    def __init__(self, side: str, num_classes: int) -> None:
        super().__init__()
        self.side, self.loss = side, MeanLoss()
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
                "precision": MulticlassPrecision(num_classes, average="macro", validate_args=False),
                "recall": MulticlassRecall(num_classes, average="macro", validate_args=False),
                "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            },
            prefix=f"{side}_",
        )
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits, float (N, num_classes), and labels, int64 (N,); N may be 0."""
        if len(labels):
            self.loss.update(F.cross_entropy(logits, labels, reduction="sum"), len(labels))
            self._waiting.append((logits, labels))
        if len(self._waiting) >= NUM_BATCHES:
            self.count()

    def count(self) -> None:
        """Bring all states up to date."""
        if self._waiting:
            logits, labels = zip(*self._waiting, strict=True)
            self._waiting = []
            with _plain_counts():
                self.metrics.update(torch.cat(logits), torch.cat(labels))
        self.metrics.values(copy_state=False)  # lets metrics that share a state see it

    @property
    def updated(self) -> bool:
        """Return whether there was a batch on this rank or, before a resume inside an epoch, on any."""
        return self.loss.update_called

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name, the loss first; all ranks must call it."""
        self.count()
        return {f"{self.side}_loss": self.loss.compute(), **self.metrics.compute()}

    def reset(self) -> None:
        """Start again from nothing."""
        self._waiting = []
        self.loss.reset()
        self.metrics.reset()

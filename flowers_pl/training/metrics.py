"""Loss and metrics of one side, exact on any number of ranks: torchmetrics objects, unlike
`self.log(..., sync_dist=True)`, count every photo once."""

from __future__ import annotations

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

TOGETHER = 64  # batches counted at once: 0.6 ms each time, in which the threads ahead wait for Python


class MeanLoss(Metric):
    """The mean loss over all photos of all batches and ranks.

    torchmetrics' MeanMetric does not do: with `nan_strategy="disable"` (1.9.0) it ignores the weights, so a
    short last batch or a rank with fewer photos counts too much; with the others it drops a NaN that should
    be seen, or waits for the device at each step.
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
        """The mean so far."""
        return self.total / self.count


class Scores(nn.Module):
    """Mean loss, accuracy, and macro precision, recall and F1 of what has been judged since the last reset.

    Confusions are whole numbers, so it does not matter which batches are counted together; losses are summed
    batch by batch, so that a resumed run sums them in the same order.

    Args:
        side: 'train', 'val' or 'test'; the figures' names begin with it.
        classes: how many there are.
    """

    def __init__(self, side: str, classes: int) -> None:
        super().__init__()
        self.side, self.loss = side, MeanLoss()
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
                "precision": MulticlassPrecision(classes, average="macro", validate_args=False),
                "recall": MulticlassRecall(classes, average="macro", validate_args=False),
                "f1": MulticlassF1Score(classes, average="macro", validate_args=False),
            },
            prefix=f"{side}_",
        )
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Judge logits, float (N, classes), by labels, int64 (N,); N may be 0."""
        if len(labels):
            self.loss.update(F.cross_entropy(logits, labels, reduction="sum"), len(labels))
            self._waiting.append((logits, labels))
        if len(self._waiting) >= TOGETHER:
            self.count()

    def count(self) -> None:
        """Bring all states up to date."""
        if self._waiting:
            logits, labels = zip(*self._waiting, strict=True)
            self._waiting = []
            self.metrics.update(torch.cat(logits), torch.cat(labels))
        self.metrics.values(copy_state=False)  # of metrics that share a state

    @property
    def begun(self) -> bool:
        """Whether anything has been judged on this rank or, after a resume inside an epoch, before."""
        return self.loss.update_called

    def compute(self) -> dict[str, Tensor]:
        """The figures by name, the loss first; all ranks must ask."""
        self.count()
        return {f"{self.side}_loss": self.loss.compute(), **self.metrics.compute()}

    def reset(self) -> None:
        """Begin anew."""
        self._waiting = []
        self.loss.reset()
        self.metrics.reset()

"""Predictions as they come: from the Trainer's loop, on any number of devices, or from an exported model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from flowers_pl.data.batches import Batch, Prediction
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.evaluation.predictions import PredictionTable
from flowers_pl.runs.ranks import gather

if TYPE_CHECKING:
    from flowers_pl.export.load import Exported


class WritePredictions(L.Callback):
    """Gives the predictions of all ranks to a table, batch by batch, in the order of the photos.

    Args:
        table: has begun on the first rank; None on the others.
    """

    def __init__(self, table: PredictionTable | None) -> None:
        self.table = table

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let all ranks go on after the rows that the table has."""
        num_predicted = 0 if self.table is None else self.table.done.rows
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it; its annotations do not know
        data.num_predicted = trainer.strategy.broadcast(num_predicted)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the rows of a batch of each rank."""
        found: list[Prediction] = gather(trainer, outputs)
        if self.table is not None:
            self.table.add_predictions(found)


def predict_exported(
    exported: Exported, data: FlowersDataModule, limit: int | float = 1.0
) -> Iterator[Prediction]:
    """Yield the predictions of an exported model; this needs neither its checkpoint nor its training photos.

    The loader's workers decode and resize while the model runs; its own resize leaves such photos as they
    are.

    Args:
        exported: the model.
        data: with the photos to predict listed, at the model's size.
        limit: the Trainer's `limit_predict_batches`: a number of batches, or a share of them.
    """
    loader = data.predict_dataloader()
    for batch in islice(loader, limit if isinstance(limit, int) else int(len(loader) * limit)):
        yield Prediction(batch.rows, torch.from_numpy(exported(batch.photos)), batch.unreadable)

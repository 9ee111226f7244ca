"""What a run leaves behind to look at: metrics.csv, images per second, and the settings of the run."""

from __future__ import annotations

import csv
import hashlib
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replacing, write_csv
from flowers_pl.core.names import LEFT_OUT, SPLIT
from flowers_pl.data.batches import Batch
from flowers_pl.data.folder import LeftOut
from flowers_pl.data.split import write_split


class EpochTable(Logger):
    """A logger that keeps one row an epoch in a CSV file.

    Lightning's CSVLogger writes training and validation of an epoch into different rows, and forgets the rows
    of a run that is resumed. Here an epoch's figures meet in one row, and a resumed run goes on with the
    table.

    Args:
        file: where the table lies.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        super().__init__()
        self.file = Path(file)
        self.rows: dict[int, dict[str, float]] = {}
        if self.file.is_file():
            self.rows = {int(row["epoch"]): row for row in read_table(self.file)}

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings stand in config.yaml, not here."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to their epoch's row; figures without an epoch are passed over."""
        if "epoch" in metrics:
            epoch = int(metrics["epoch"])
            figures = {name: float(f"{value:.7g}") for name, value in metrics.items()}  # float32 on the way
            self.rows.setdefault(epoch, {}).update({**figures, "epoch": epoch})
            self._write()

    def _write(self) -> None:
        columns = ["epoch", *sorted({name for row in self.rows.values() for name in row} - {"epoch"})]
        with replacing(self.file) as unfinished, open(unfinished, "w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))


def read_table(file: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a metrics.csv; empty cells are left out."""
    with open(file, newline="") as stream:
        return [
            {name: int(cell) if name == "epoch" else float(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(stream)
        ]


class Throughput(L.Callback):
    """Logs how many photos a second an epoch trained, on all ranks together, validation not counted."""

    def __init__(self) -> None:
        self.photos, self.start, self.end = 0, 0.0, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.photos == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.photos += batch.total
        self.end = time.perf_counter()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.photos:
            pl_module.log("images_per_second", self.photos / (self.end - self.start))
        self.photos = 0


class DataFiles(L.Callback):
    """Writes beside the run which photos were on which side, and which were left out, and why.

    Several machines must have the same photos, or each would train on others than the order of photos says;
    and resume the same checkpoint, or one of them would start anew.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it; its annotations do not know
        digest = hashlib.blake2b(repr(data.placed).encode(errors="surrogateescape")).hexdigest()
        if not all_alike(trainer, digest):
            raise FlowersError(
                f"--data.root: the photos in {str(data.root)!r}, or their split, are not the same on all"
                " machines of this run; copy the folder anew."
            )
        if not all_alike(trainer, f"{trainer.ckpt_path is None} {getattr(pl_module, 'stage', None)}"):
            raise FlowersError(
                "--ckpt_path: the machines of this run do not have the same checkpoint; copy the run's folder"
                f" {str(self.folder)!r} from the first one to the others."
            )
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_split(self.folder / SPLIT, data.placed)
            write_csv(self.folder / LEFT_OUT, LeftOut._fields, data.left_out)


def all_alike(trainer: L.Trainer, text: str) -> bool:
    """Whether all ranks have the same text as rank 0; all must ask."""
    unlike = torch.tensor(
        float(trainer.strategy.broadcast(text) != text), device=trainer.strategy.root_device
    )
    return float(trainer.strategy.reduce(unlike, reduce_op="max")) == 0

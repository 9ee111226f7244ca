"""The tables of a run: metrics.csv with images per second, split.csv and left_out.csv."""

from __future__ import annotations

import csv
import logging
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import read_csv, replacing, write_csv
from flowers_pl.core.names import LAST, LEFT_OUT, SPLIT
from flowers_pl.core.text import plural, printable
from flowers_pl.data.batches import Batch
from flowers_pl.data.folder import NAMED
from flowers_pl.data.split import Placed, write_split
from flowers_pl.runs.folder import split_of
from flowers_pl.runs.ranks import same_on_all_ranks

log = logging.getLogger(__name__)


class EpochTable(Logger):
    """A logger that keeps one row per epoch in a CSV file.

    Lightning's CSVLogger writes training and validation of an epoch into different rows, and forgets the rows
    of a run that is resumed. Here they share a row, and a resumed run continues the table.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "metrics.csv")
    >>> table = EpochTable(file)
    >>> table.log_metrics({"epoch": 0, "train_loss": 1.25})
    >>> table.log_metrics({"epoch": 0, "val_loss": 1.5})
    >>> read_table(file)
    [{'epoch': 0, 'train_loss': 1.25, 'val_loss': 1.5}]

    Args:
        file: the table, usually metrics.csv.
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
        """Do nothing: config.yaml holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to their epoch's row; metrics without an epoch are ignored."""
        if "epoch" in metrics:
            epoch = int(metrics["epoch"])
            values = {name: float(f"{value:.7g}") for name, value in metrics.items()}  # they are float32
            self.rows.setdefault(epoch, {}).update({**values, "epoch": epoch})
            self._write()

    def forget_after(self, epoch: int) -> None:
        """Leave out later epochs, which a run that resumes from an earlier checkpoint trains again."""
        self.rows = {number: row for number, row in self.rows.items() if number <= epoch}

    def _write(self) -> None:
        columns = ["epoch", *sorted({name for row in self.rows.values() for name in row} - {"epoch"})]
        with replacing(self.file) as unfinished, open(unfinished, "w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows[epoch] for epoch in sorted(self.rows))


def read_table(file: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv; empty cells are left out.

    Raises:
        FlowersError: it cannot be read, or is not such a table.
    """
    try:
        return [
            {name: int(cell) if name == "epoch" else float(cell) for name, cell in row.items() if cell}
            for row in read_csv(file, ["epoch"])
        ]
    except (OSError, csv.Error, LookupError, ValueError) as error:
        why = reason_of(error) if not isinstance(error, LookupError) else f"no column {error.args[0]!r}"
        raise FlowersError(
            f"{str(file)!r} is not as the run wrote it ({why}); restore it, or move it away to resume without"
            " the metrics of earlier epochs."
        ) from error


class Throughput(L.Callback):
    """Logs the photos per second of an epoch's training, of all ranks together, without validation."""

    def __init__(self) -> None:
        self.num_photos, self.start, self.end = 0, 0.0, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.num_photos == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.num_photos += batch.total
        self.end = time.perf_counter()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.num_photos:
            pl_module.log("images_per_second", self.num_photos / (self.end - self.start))
        self.num_photos = 0


class DataFiles(L.Callback):
    """Writes split.csv, with the photos of both sides, and left_out.csv, with those left out and why.

    Before that it checks that all machines of a run resume the same checkpoint.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it; its annotations do not know
        if not same_on_all_ranks(trainer, f"{trainer.ckpt_path is None} {getattr(pl_module, 'stage', None)}"):
            raise FlowersError(
                "--ckpt_path: the machines of this run do not have the same checkpoint; copy the run's folder"
                f" {str(self.folder)!r} from the first one to the others."
            )
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            if trainer.ckpt_path is not None:
                self._log_changes(data.placed)
            write_split(self.folder / SPLIT, data.placed)
            write_csv(self.folder / LEFT_OUT, ("path", "reason"), (photo[:2] for photo in data.left_out))

    def _log_changes(self, placed: Sequence[Placed]) -> None:
        """Say where the photos of a run that is resumed are not what they were: a list that decides on them
        may have changed under the same name."""
        changed: list[str] = []
        with suppress(FlowersError):  # it is damaged, and is written anew
            before = {photo[:3] for photo in split_of(self.folder / LAST)}
            changed = sorted({path for path, _, _ in before ^ {photo[:3] for photo in placed}})
        if not changed:
            return
        log.warning(
            "%s: %s of this run took part with another label or on another side before, or did not, or do"
            " not any more: %s%s.",
            self.folder / SPLIT, plural(len(changed), "photo"), printable(", ".join(changed[:NAMED])),
            ", …" if len(changed) > NAMED else "",
        )  # fmt: skip

"""Progress of a run: a bar on a terminal, and a line for each epoch everywhere."""

from __future__ import annotations

import logging
import sys
from pathlib import PurePath
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from flowers_pl.core.screen import show
from flowers_pl.core.text import printable

log = logging.getLogger(__name__)


class AboveBars(logging.Handler):
    """Writes log lines to standard error, each on a line of its own above the progress bars."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, the texts and paths in it made printable: they may be names of files."""
        if isinstance(record.args, tuple):
            given = (printable(str(arg)) if isinstance(arg, str | PurePath) else arg for arg in record.args)
            record = logging.makeLogRecord(record.__dict__ | {"args": tuple(given)})
        return super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            with tqdm.external_write_mode(file=sys.stderr):
                show(self.format(record), sys.stderr)
        except Exception:
            self.handleError(record)


class EpochBar(TQDMProgressBar):
    """Lightning's bar, whose epochs count from 1, as everything else here does."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count the epoch from 1 in the bar's description."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics to show, without the logger's version: the run has a name."""
        shown: dict[str, Any] = super().get_metrics(trainer, pl_module)  # type: ignore[assignment]
        shown.pop("v_num", None)
        return shown


class EpochLines(L.Callback):
    """Logs a line for each epoch, which stays on the screen and in a log file."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's loss and accuracy."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        sides = {"training": "train", "validation": "val"}
        parts = (
            f"loss {metrics[f'{side}_loss']:.4f}, accuracy {metrics[f'{side}_accuracy']:.4f} in {name}"
            for name, side in sides.items()
            if f"{side}_loss" in metrics
        )
        log.info("Epoch %d: %s.", trainer.current_epoch + 1, "; ".join(parts))


def bars_for(wanted: bool | None, given: list[L.Callback]) -> tuple[bool, list[L.Callback]]:
    """Return whether the Trainer shows progress bars, and the bar to add where its user has given none.

    Args:
        wanted: `--trainer.enable_progress_bar`; None to show them on a terminal only.
        given: the user's callbacks.
    """
    shown = sys.stdout is not None and sys.stdout.isatty() if wanted is None else wanted
    own = any(isinstance(callback, ProgressBar) for callback in given)
    return shown or own, [EpochBar()] if shown and not own else []

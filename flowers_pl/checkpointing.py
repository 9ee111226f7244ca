"""Checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from flowers_pl.errors import FlowersError

log = logging.getLogger(__name__)
KEY = "flowers_pl"  # of our own part of a checkpoint
BEST, LAST = "best.ckpt", "last.ckpt"


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of this project; nothing in it is executed (`weights_only=True`).

    Raises:
        FlowersError: there is no such file, it is torn, would run code, or is not a checkpoint of this
            project.
    """
    path = Path(path)
    if not path.is_file():
        raise FlowersError(
            f"--ckpt_path: there is no checkpoint {str(path)!r}; give the path of a best.ckpt or last.ckpt."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FlowersError(
            f"--ckpt_path: {str(path)!r} is refused: it holds more than tensors and plain values, and"
            " loading that"
            " could run code; give a checkpoint that flowers_pl wrote."
        ) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        ImportError,
    ) as error:
        raise FlowersError(
            f"--ckpt_path: {str(path)!r} is no checkpoint, or is torn; give a checkpoint that flowers_pl"
            " wrote."
        ) from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise FlowersError(
            f"--ckpt_path: {str(path)!r} is not a checkpoint of flowers_pl; give a best.ckpt or last.ckpt"
            " from its runs."
        )
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, brings it to the disk, and renames it.

    Lightning's own way (2.6) goes through a temporary file elsewhere and a move, which is a plain copy across
    file systems.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save so that at every moment the old or the new file is there whole.

        Raises:
            FlowersError: it cannot be written; the old file is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(unfinished, 0o666 & ~_umask())
            os.replace(unfinished, path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            raise FlowersError(
                f"The checkpoint {str(path)!r} cannot be written ({error}); make room and resume from the"
                " last one."
            ) from error
        finally:
            Path(unfinished).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class RunCheckpoints(Checkpoint):
    """Keeps the best and the last state of a run: `best.ckpt` and `last.ckpt`.

    Best is the lowest validation loss of the whole run, over both stages. Both are written at the end of
    validation, a moment from which Lightning resumes exactly.

    Args:
        folder: of the run; None for the trainer's log_dir.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.best_loss = float("inf")
        self.best_epoch = -1

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss, self.best_epoch = state_dict["best_loss"], state_dict["best_epoch"]

    def path(self, trainer: L.Trainer, name: str) -> Path:
        """Where a checkpoint of this run lies."""
        return Path(self.folder or trainer.log_dir or trainer.default_root_dir) / name

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or _only_tried(trainer):
            return
        loss = float(trainer.callback_metrics["val_loss"])
        if better := loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, trainer.current_epoch
        if better:
            trainer.save_checkpoint(self.path(trainer, BEST))
        trainer.save_checkpoint(self.path(trainer, LAST))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the module the best weights, read on one rank and handed to the others: Lightning leaves it
        the last ones."""
        if self.best_epoch < 0 or _only_tried(trainer):
            return
        best = read_checkpoint(self.path(trainer, BEST))["state_dict"] if trainer.is_global_zero else None
        pl_module.load_state_dict(trainer.strategy.broadcast(best or {}))

    def add_to_best(self, trainer: L.Trainer, part: dict[str, Any]) -> None:
        """Write `best.ckpt` again with more in our own part of it; called on one rank."""
        path = self.path(trainer, BEST)
        checkpoint = read_checkpoint(path)
        checkpoint[KEY] |= part
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def _only_tried(trainer: L.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which must not write over a run's checkpoints."""
    return bool(getattr(trainer, "fast_dev_run", False))  # set by Lightning, not annotated


def newest_best(folder: str | os.PathLike[str] = "checkpoints") -> Path:
    """The `best.ckpt` that was written last among the runs in `folder`.

    Raises:
        FlowersError: there is none.
    """
    found = sorted(Path(folder).glob(f"*/{BEST}"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise FlowersError(
            f"There is no {BEST} below {str(folder)!r}; train one with 'python -m flowers_pl fit', or"
            " give --ckpt_path."
        )
    return found[-1]

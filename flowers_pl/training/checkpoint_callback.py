"""Save `best.ckpt` and `last.ckpt` when a run can be resumed from them exactly."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torchmetrics import Metric

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import BEST, KEY, LAST
from flowers_pl.core.signals import StopSignals
from flowers_pl.data.batches import Batch
from flowers_pl.training.checkpoint_files import copy_checkpoint, read_checkpoint, remove_leftovers
from flowers_pl.training.metrics import SideMetrics
from flowers_pl.training.stage import Stage

log = logging.getLogger(__name__)
MIDDLE = f"{KEY}_inside_epoch"  # the key that only a checkpoint saved inside an epoch has
NOTHING_LEFT = (
    "Nothing was left to train: this run has reached --trainer.max_steps, --trainer.max_epochs or"
    " --trainer.max_time; raise it to train on."
)


class RunCheckpoints(Checkpoint):
    """Saves the best and the last state of a run: `best.ckpt` and `last.ckpt`.

    The best has the lowest validation loss of the whole run, over both stages. Where the learning rates fall
    to zero over a stage, and in a refit, it is the last one too. Both are written at the end of validation.
    Lightning resumes exactly from there and from the end of a batch that is not its epoch's last, but not
    from between an epoch's last batch and the end of its validation. Where --trainer.max_steps or
    --trainer.max_time ends a run inside an epoch, `last.ckpt` is written there.

    Args:
        folder: of the run; None for the trainer's log_dir.
        every_n_steps: write `last.ckpt` inside an epoch too, after every so many steps of the whole run.
        signals: asked at each of these moments whether to save and stop.

    >>> callback = RunCheckpoints("checkpoints/mine")
    >>> trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=[callback])
    >>> callback.path(trainer, "best.ckpt").as_posix()
    'checkpoints/mine/best.ckpt'
    >>> callback.best_epoch, callback.best_loss  # before the first validation
    (-1, inf)
    """

    def __init__(
        self,
        folder: str | None = None,
        every_n_steps: int | None = None,
        signals: StopSignals | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise FlowersError(f"--save_every_n_steps must be at least 1, not {every_n_steps}.")
        self.folder, self.every_n_steps, self.signals = folder, every_n_steps, signals
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.restoring = False  # whether a checkpoint is being restored
        self._first_step: int | None = None
        self._stops = self._ends_inside = False

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss, self.best_epoch = state_dict["best_loss"], state_dict["best_epoch"]

    def path(self, trainer: L.Trainer, name: str) -> Path:
        """Return a checkpoint's path; all ranks must call it, because Lightning broadcasts its log_dir."""
        return Path(self.folder or trainer.log_dir or trainer.default_root_dir) / name

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = self.path(trainer, LAST).parent
        if stage == "fit":
            self.restoring, self._first_step = True, None
            self._stops = self._ends_inside = False
            if trainer.is_global_zero:
                remove_leftovers(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restoring, self._first_step = False, trainer.global_step
        if self.signals is not None:
            self.signals.wait()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        batches = batch_idx + 1
        if batches >= trainer.num_training_batches or _is_trial(trainer):
            return
        self._stops |= trainer.should_stop
        stepped = batches % trainer.accumulate_grad_batches == 0
        trainer.should_stop = self._stops and stepped  # accumulated gradients are not saved
        if not stepped:
            return
        noted, self._ends_inside = self._noted(trainer), trainer.fit_loop.done
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if noted or self._ends_inside or due:
            trainer.save_checkpoint(self.path(trainer, LAST))
        self._obey(noted, trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or _is_trial(trainer):
            return
        loss = float(trainer.callback_metrics.get("val_loss", math.inf))  # a refit has none
        cut_short = self._ends_inside and self.best_epoch >= 0  # the whole run does not validate here
        if better := not cut_short and (loss < self.best_loss or not _chooses(pl_module)):
            self.best_loss, self.best_epoch = loss, trainer.current_epoch
        best, last = self.path(trainer, BEST), self.path(trainer, LAST)
        if better:
            trainer.save_checkpoint(best)
        if not self._ends_inside:  # or last.ckpt is that of the epoch's last step
            if not better:
                trainer.save_checkpoint(last)
            elif trainer.is_global_zero:
                copy_checkpoint(best, last)
        self._obey(self._noted(trainer), trainer)

    def _noted(self, trainer: L.Trainer) -> set[int]:
        return set() if self.signals is None else self.signals.noted(trainer)

    def _obey(self, noted: set[int], trainer: L.Trainer) -> None:
        folder = self.path(trainer, LAST).parent
        if self.signals is not None and noted:
            self.signals.obey(noted, trainer)
            if trainer.is_global_zero:
                remove_leftovers(folder)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log where the run has ended, and load its best weights; Lightning leaves the last ones."""
        if self.signals is not None:
            self.signals.wait_no_more(trainer)
        last = self.path(trainer, LAST)
        if self._ends_inside:
            never = ", before its first validation, so nothing was validated" if self.best_epoch < 0 else ""
            log.warning(
                "The run has ended inside epoch %d at step %d%s; it can be resumed from %s.",
                trainer.current_epoch, trainer.global_step, never, last,
            )  # fmt: skip
        elif trainer.global_step == self._first_step and not trainer.should_stop:
            log.warning(NOTHING_LEFT)
        self._restore_best(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report a training that Lightning has skipped, without the hooks of its start and its end.

        Raises:
            FlowersError: the run is new, so that there is nothing to go by.
        """
        if self._first_step is not None:
            return
        if not trainer.global_step:
            raise FlowersError(
                "Nothing was trained: --trainer.max_steps, --trainer.max_time or"
                " --trainer.limit_train_batches leaves no step to train; raise it, or leave it out."
            )
        self.restoring = False
        log.warning(NOTHING_LEFT)
        self._restore_best(trainer, pl_module)

    def _restore_best(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the best weights on one rank and send them to the others."""
        if self.best_epoch < 0 or _is_trial(trainer):
            return
        file = self.path(trainer, BEST)
        best = read_checkpoint(file)["state_dict"] if trainer.is_global_zero else None
        pl_module.load_state_dict(trainer.strategy.broadcast(best or {}))

    # ---------------------------------------------------------------- inside an epoch

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the metrics of the epoch so far, which Lightning does not; after validation there are none."""
        if (figures := metrics_so_far(trainer, pl_module)) or self._ends_inside:
            checkpoint[MIDDLE] = {"batches": _batches(trainer), "figures": figures}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the metrics of the epoch so far.

        Raises:
            FlowersError: the epoch now has other batches.
            ValueError: the checkpoint has no state of the optimizer.
        """
        if not checkpoint.get("optimizer_states"):
            raise ValueError("optimizer_states is missing")
        middle = checkpoint.get(MIDDLE)
        if middle is None:
            return
        if middle["batches"] != _batches(trainer):
            raise FlowersError(
                "--ckpt_path: this checkpoint was saved inside an epoch, whose photos, --data.batch_size,"
                " --data.balance, --seed_everything and, for a remote pack, --data.shard_cache_limit must not"
                " change; restore them, or resume from best.ckpt."
            )
        for name, metric in _metrics(pl_module).items():
            for state, value in middle["figures"].get(name, {}).items():
                if trainer.is_global_zero:
                    setattr(metric, state, value.to(metric.device))
                metric._update_count = 1  # on all ranks, which compute it together


class AddToBest(Checkpoint):
    """Adds something to `best.ckpt` when training ends, with the best weights.

    It belongs after `RunCheckpoints`, which restores these. It is a `Checkpoint` because Lightning runs
    callbacks of that class after all others.
    """

    def __init__(self) -> None:
        self._has_trained = False

    def add(self, trainer: L.Trainer, module: Any, file: Path) -> None:
        """Add to a checkpoint, on one rank, and let all ranks' modules have the same."""
        raise NotImplementedError

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._has_trained = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add it; do nothing where no checkpoint is the best."""
        if (file := best_checkpoint(trainer)) is not None:
            self.add(trainer, pl_module, file)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add it where a killed run was resumed with nothing left to train: Lightning skips its hooks."""
        if not self._has_trained:
            self.on_train_end(trainer, pl_module)


def metrics_so_far(trainer: L.Trainer, module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the states of the metrics that were updated, summed over the ranks; all ranks must call it."""
    return {
        name: {
            state: trainer.strategy.reduce(torch.as_tensor(value).clone(), reduce_op="sum").cpu()
            for state, value in metric.metric_state.items()
        }
        for name, metric in _metrics(module).items()
        if metric.update_called
    }


def best_checkpoint(trainer: L.Trainer) -> Path | None:
    """Return the best checkpoint of a run, None where none is; all ranks must call it, as `path`."""
    callbacks = [item for item in trainer.checkpoint_callbacks if isinstance(item, RunCheckpoints)]
    if not callbacks or callbacks[0].best_epoch < 0 or _is_trial(trainer):
        return None
    return callbacks[0].path(trainer, BEST)


def _metrics(module: nn.Module) -> dict[str, Metric]:
    """Return a module's metrics by name, each with a state of its own."""
    for item in module.modules():
        if isinstance(item, SideMetrics):
            item.count()
    return {name: item for name, item in module.named_modules() if isinstance(item, Metric)}


def _batches(trainer: L.Trainer) -> dict[str, int | str]:
    """Return what determines the batches of an epoch."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # not annotated by Lightning
    pixels = data.train_photos.pixels
    window = getattr(pixels, "window", None)  # of the shards of a pack
    return {
        "photos": len(data.train_photos),
        "batch_size": data.batch_size,
        "seed": data.seed,
        "balance": data.balance,
        **({} if window is None or window == len(pixels.shards) else {"window": window}),
    }


def _chooses(module: L.LightningModule) -> bool:
    """Return whether the validation loss chooses the epoch that is kept, and not the end of the schedule."""
    stage = getattr(module, "stage", None)
    return not isinstance(stage, Stage) or stage.chooses


def _is_trial(trainer: L.Trainer) -> bool:
    """Return whether this is a `fast_dev_run`, which must not overwrite a run's checkpoints."""
    return bool(getattr(trainer, "fast_dev_run", False))  # not annotated by Lightning

"""End a run at once when its loss or its weights are not finite."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import LAST
from flowers_pl.training.checkpoint_callback import RunCheckpoints


class RequireFiniteLoss(L.Callback):
    """Ends a run when a loss is not finite on any rank, before its weights are saved.

    On a GPU a step's loss is read one step later, so that the device need not be waited for.

    Raises:
        FlowersError: names the epoch and the step, what to try, and the last good checkpoint.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, int, Tensor] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pending = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        finite = outputs["loss"].isfinite()
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce(finite.float(), reduce_op="sum") == trainer.world_size
        self._check(trainer, pl_module)
        self._pending = trainer.current_epoch + 1, trainer.global_step, finite
        if finite.device.type == "cpu":
            self._check(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            loss = trainer.callback_metrics.get("val_loss")  # over all ranks
            if loss is not None and not loss.isfinite():
                epoch, step = trainer.current_epoch + 1, trainer.global_step
                raise _error(trainer, pl_module, "The validation loss", epoch, step)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep weights that are not finite out of the run's checkpoints."""
        self._check(trainer, pl_module)
        trained = [weight for weight in pl_module.parameters() if weight.requires_grad]
        if not all(bool(weight.isfinite().all()) for weight in trained):
            epoch, step = trainer.current_epoch + 1, trainer.global_step
            raise _error(trainer, pl_module, "A trained weight", epoch, step)

    def _check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and not pending[2]:
            raise _error(trainer, module, "The training loss", *pending[:2])


def _error(trainer: L.Trainer, module: L.LightningModule, what: str, epoch: int, step: int) -> FlowersError:
    stage = getattr(getattr(module, "stage", None), "number", 1)
    option = "head_lr" if stage == 1 else "top_lr"
    rate = module.hparams[option]
    saved = [item for item in trainer.checkpoint_callbacks if isinstance(item, RunCheckpoints)]
    last = saved[0].path(trainer, LAST) if saved else None
    kept = f"the last good checkpoint is {last}" if last and last.is_file() else "no checkpoint was saved"
    return FlowersError(
        f"{what} is not finite in epoch {epoch} at step {step}, so the run has ended; try a lower"
        f" --model.{option} (now {rate:g}), --trainer.gradient_clip_val 1 or --trainer.precision 32-true;"
        f" {kept}."
    )

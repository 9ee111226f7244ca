"""Train in two stages: unfreeze the top layers after the first, and stop each of them early.

The stage is part of the module (`FlowerClassifier.stage`) and so of every checkpoint. What is frozen, and
which optimizer there is, follow from it and not from an event that a callback saw, so a resumed run continues
in its stage, which one with Lightning's `BaseFinetuning` does not (Lightning-AI/pytorch-lightning#21901).
Whether a stage is over follows from its epochs so far and from the present settings: given more epochs or
patience, a finished run continues, unless something follows a schedule over the length of a stage.
"""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.core.text import plural
from flowers_pl.network.mobilenet import TopLayers
from flowers_pl.training.checkpoint_callback import MIDDLE
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.optimizer import refuse_other_groups
from flowers_pl.training.schedule import chooses_epoch, follows_length, refuse_another_schedule
from flowers_pl.training.stage import Stage

log = logging.getLogger(__name__)


class UnfreezeTopLayers(L.Callback):
    """Trains the head alone, and then, starting from the best head, the top layers of the backbone with it.

    With `--model.schedule cosine` the last head is the one to start from, and each stage has all its epochs.
    In a refit each stage ends after the epoch that the other run kept, and the last head is that one's.

    Stage 2 has an optimizer of its own and, under DDP, a wrapper of its own: DDP reduces only gradients of
    parameters that required one when it was built (Lightning-AI/pytorch-lightning#20340). The Trainer's
    number of epochs is the sum of the stages'; a smaller `max_epochs` still ends the run.

    Args:
        layers: number of layers to unfreeze from the top, as Keras counts them (padding and additions are
            layers too), or 'all'.
        head_epochs: maximum number of epochs of stage 1; 0 begins with stage 2.
        top_epochs: maximum number of epochs of stage 2; 0 ends after stage 1.

    >>> stages = UnfreezeTopLayers(layers=30, head_epochs=10, top_epochs=5)
    >>> trainer = L.Trainer(accelerator="cpu", logger=False, max_epochs=-1, callbacks=[stages])
    >>> stages.epochs
    {1: 10, 2: 5}
    """

    def __init__(self, layers: TopLayers = 30, head_epochs: int = 10, top_epochs: int = 10) -> None:
        if layers != "all" and not 1 <= layers <= 154:
            raise FlowersError(f"--unfreeze.layers must be 'all' or from 1 to 154, not {layers}.")
        for name, epochs in (("head", head_epochs), ("top", top_epochs)):
            if epochs < 0:
                raise FlowersError(f"--unfreeze.{name}_epochs must be 0 or more, not {epochs}.")
        if head_epochs + top_epochs == 0:
            raise FlowersError("--unfreeze.head_epochs and --unfreeze.top_epochs must not both be 0.")
        self.layers, self.epochs = layers, {1: head_epochs, 2: top_epochs}
        self.best_loss = float("inf")
        self.best_head: dict[str, Tensor] = {}
        self._own_limit = False  # whether the stages decide, and not --trainer.max_epochs

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_head": self.best_head}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss, self.best_head = state_dict["best_loss"], state_dict["best_head"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Enter the first stage; a checkpoint is loaded after this and replaces it.

        Raises:
            FlowersError: there is no epoch to train, or not every epoch ends with its only validation.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.max_epochs == 0:
            raise FlowersError("--trainer.max_epochs must be at least 1, or -1 for all epochs of the stages.")
        if not _validates_each_epoch(trainer):
            raise FlowersError(
                "--trainer.val_check_interval, --trainer.check_val_every_n_epoch and"
                " --trainer.limit_val_batches: stages need one validation after each epoch; leave these"
                " options at their defaults."
            )
        total = sum(self.epochs.values())
        limit = trainer.max_epochs
        self._own_limit = limit is None or not 0 <= limit <= total
        if self._own_limit:
            trainer.fit_loop.max_epochs = total
        elif limit is not None and limit < total:
            log.info("--trainer.max_epochs ends the run after %s.", plural(limit, "epoch"))
        first = Stage(last=not self.epochs[2]) if self.epochs[1] else Stage(2, self.layers)
        self._enter(_classifier(pl_module), first)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find out whether the stage of a resumed run has had all its epochs, and whether another follows.

        Raises:
            FlowersError: the present settings would make the learning rates jump.
        """
        stage = _classifier(pl_module).stage
        if stage.number == 2 and stage.layers != self.layers:
            raise FlowersError(
                f"--unfreeze.layers: stage 2 of this run trains {stage.layers} layers, not {self.layers};"
                " leave this option out, or start a new run."
            )
        self._refuse_a_jump(_classifier(pl_module), checkpoint)
        stage.epochs = self.epochs[stage.number]
        trained = checkpoint["epoch"] + (MIDDLE not in checkpoint)
        stage.ended |= trained - stage.first_epoch >= self._length(_classifier(pl_module))
        stage.last = stage.number == 2 or not self.epochs[2]
        if self._own_limit:  # stage 2 begins when stage 1 has ended, not when it might have
            first = stage.first_epoch if stage.number == 2 else max(trained, self.epochs[1])
            trainer.fit_loop.max_epochs = max(trained, first + self.epochs[2])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stage = _classifier(pl_module).stage
        if stage.ended and stage.last:
            log.info(
                "This run is finished: stage %d has ended. There is nothing left to train.", stage.number
            )
            trainer.should_stop = True
        elif not stage.ended:
            self._announce(trainer, _classifier(pl_module))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = _classifier(pl_module)
        if module.stage.ended and not module.stage.last:
            self._unfreeze(trainer, module)
            self._announce(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        module = _classifier(pl_module)
        if module.stage.number == 1 and module.stage.chooses:
            self._note_head(module, float(trainer.callback_metrics["val_loss"]))
        if trainer.current_epoch + 1 - module.stage.first_epoch >= self._length(module):
            end_stage(trainer, module)

    def _note_head(self, module: FlowerClassifier, loss: float) -> None:
        if loss < self.best_loss:
            self.best_loss = loss
            self.best_head = {
                name: value.detach().cpu().clone() for name, value in module.network.head.state_dict().items()
            }

    def _length(self, module: FlowerClassifier) -> int:
        """Count the epochs of the stage: those of its schedule, or those that the run of a refit kept."""
        number, refit = module.stage.number, module.refit
        return self.epochs[number] if refit is None else min(self.epochs[number], refit.epochs(number))

    def _unfreeze(self, trainer: L.Trainer, module: FlowerClassifier) -> None:
        if self.best_head:
            module.network.head.load_state_dict(self.best_head)
        self._enter(module, Stage(2, self.layers, first_epoch=trainer.current_epoch))
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model = module
            trainer.strategy.configure_ddp()
        trainer.strategy.setup_optimizers(trainer)

    def _enter(self, module: FlowerClassifier, stage: Stage) -> None:
        stage.epochs = self.epochs[stage.number]
        stage.chooses = chooses_epoch(module.schedule) and module.refit is None
        module.enter_stage(stage)

    def _refuse_a_jump(self, module: FlowerClassifier, checkpoint: dict[str, Any]) -> None:
        """Compare what the learning rates follow with what they followed when a checkpoint was saved."""
        old, stage = checkpoint["hyper_parameters"], checkpoint[KEY]["stage"]
        part = {1: "head", 2: "top"}[stage["number"]]
        if stage.get("epochs") and module.weak_epochs:
            option = f"unfreeze.{part}_epochs"
            refuse_another_schedule({option: stage["epochs"]}, {option: self.epochs[stage["number"]]})
        if follows_length(old) or follows_length(module.hparams):
            before = {
                "model.schedule": old.get("schedule", "constant"),
                "model.warmup": old.get("warmup", 0.0),
                f"unfreeze.{part}_epochs": stage.get("epochs", 0),
            }
            now = {
                "model.schedule": module.schedule,
                "model.warmup": module.warmup,
                f"unfreeze.{part}_epochs": self.epochs[stage["number"]],
            }
            if stage["number"] == 2 and not (stage.get("chooses", True) or module.refit):
                before["unfreeze.head_epochs"] = stage["first_epoch"]
                now["unfreeze.head_epochs"] = self.epochs[1]
            refuse_another_schedule(before, now)
        for saved in checkpoint.get("optimizer_states", ()):
            refuse_other_groups(saved, module.parameter_groups())

    def _announce(self, trainer: L.Trainer, module: FlowerClassifier) -> None:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        parts = {0: "the head alone", "all": "the head and the whole backbone"}.get(
            module.stage.layers, f"the head and the top {module.stage.layers} layers"
        )
        all_rates = [group["lr"] for group in module.parameter_groups()]
        rates = dict.fromkeys([min(all_rates), max(all_rates)])
        epochs = plural(self._length(module), "epoch")
        log.info(
            "Stage %d trains %s: %s parameters in %d tensors, %s at %s, %s.",
            module.stage.number, parts, f"{sum(map(torch.numel, trained)):,}", len(trained),
            type(trainer.optimizers[0]).__name__, " to ".join(f"{rate:g}" for rate in rates),
            f"at most {epochs}" if module.stage.chooses else f"{epochs}, of which the last is kept",
        )  # fmt: skip


class StageEarlyStopping(L.Callback):
    """Ends a stage, and the run if no other stage follows, when the validation loss has stopped falling.

    Each stage has its own lowest loss and patience; Lightning's `EarlyStopping` would carry those of stage 1
    into stage 2 (Lightning-AI/pytorch-lightning#16881).

    Args:
        patience: number of epochs without a new lowest loss after which the stage ends; not used with
            `--model.schedule cosine`, which ends at zero only where a stage has all its epochs.

    >>> stopping = StageEarlyStopping(patience=4)
    >>> stopping.state_dict()
    {'stage': 0, 'best_loss': inf, 'waited': 0}
    """

    def __init__(self, patience: int = 4) -> None:
        if patience < 1:
            raise FlowersError(f"--early_stopping.patience must be at least 1, not {patience}.")
        self.patience = patience
        self.stage, self.best_loss, self.waited = 0, float("inf"), 0

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "best_loss": self.best_loss, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stage, self.best_loss, self.waited = (
            state_dict[name] for name in ("stage", "best_loss", "waited")
        )

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find out whether the stage of a resumed run has used up its patience."""
        stage, saved = _classifier(pl_module).stage, checkpoint["callbacks"].get(self.state_key)
        if saved is not None and saved["stage"] == stage.number:
            stage.ended |= saved["waited"] >= self.patience and stage.chooses

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not chooses_epoch(_classifier(pl_module).schedule):
            log.info(
                "--early_stopping.patience is not used: with --model.schedule cosine each stage has all its"
                " epochs."
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        module = _classifier(pl_module)
        if not module.stage.chooses:
            return
        if self.stage != module.stage.number:
            self.stage, self.best_loss, self.waited = module.stage.number, float("inf"), 0
        loss = float(trainer.callback_metrics["val_loss"])
        self.waited = 0 if loss < self.best_loss else self.waited + 1
        self.best_loss = min(loss, self.best_loss)
        if self.waited >= self.patience:
            log.info(
                "Stage %d ends early: the validation loss has not fallen below %.4f for %s.",
                self.stage, self.best_loss, plural(self.waited, "epoch"),
            )  # fmt: skip
            end_stage(trainer, module)


def _validates_each_epoch(trainer: L.Trainer) -> bool:
    """Return whether there is a validation at the end of each epoch and nowhere else."""
    interval = getattr(trainer, "val_check_interval", None)  # Lightning (2.6) does not set it to a duration
    epoch = isinstance(interval, float) and interval == 1
    return epoch and trainer.check_val_every_n_epoch == 1 and trainer.limit_val_batches != 0


def end_stage(trainer: L.Trainer, module: FlowerClassifier) -> None:
    """Keep another epoch of this stage from beginning."""
    module.stage.ended = True
    if module.stage.last:
        trainer.should_stop = True


def _classifier(module: L.LightningModule) -> FlowerClassifier:
    if not isinstance(module, FlowerClassifier):
        raise TypeError(f"the stage callbacks train a FlowerClassifier, not a {type(module).__name__}")
    return module

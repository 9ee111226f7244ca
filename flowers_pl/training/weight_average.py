"""What stage 2 validates and keeps: a running average of the weights that it trains."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.training.classifier import FlowerClassifier

AVERAGE = f"{KEY}_average"  # what a checkpoint holds beside the averaged weights: those that are trained


class WeightAverage(L.Callback):
    """Lets validation, checkpoints and all that follows see an average over the last steps of stage 2.

    Adam moves each weight by about its learning rate in every step, so weights wander around the place that
    they tend to, and the validation loss of any one step is partly chance. The average (Polyak and Juditsky
    1992) takes that out. Training itself is the same with it and without: the optimizer does not know it.

    The average keeps `decay` of itself at each step, at first less: (1 + steps) / (10 + steps), as
    tf.train.ExponentialMovingAverage does, so that the weights of the stage's start are soon forgotten.

    Lightning's own `WeightAveraging` (2.6) averages the whole module, from the first epoch on, frozen layers
    and all. A callback of the user's that looks at weights in `on_validation_end` must come before this one,
    which brings back there what is trained.

    Args:
        decay: share of the average that one step keeps; 0 for no average: what is validated and kept is then
            what the last step left.
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise FlowersError(f"--average.decay must be at least 0 and less than 1, not {decay}.")
        self.decay = decay
        self.steps = 0
        self._aside: dict[str, Tensor] = {}  # the average; while it is validated, the trained weights
        self._swapped = False
        self._step = 0
        self._resumed: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = checkpoint.get(AVERAGE)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of a resumed run the module has the average now; give it the weights that are trained."""
        resumed, self._resumed = self._resumed or {"steps": 0, "trained": {}}, None
        self._step, self.steps, self._swapped = trainer.global_step, resumed["steps"], True
        self._aside = {name: weight.to(pl_module.device) for name, weight in resumed["trained"].items()}
        self._swap(_trained(pl_module))
        if not self.decay:
            self._aside = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if not (self.decay and stepped and _in_stage_two(pl_module)):
            return
        weights = _trained(pl_module)
        self.steps += 1
        if not self._aside:
            self._aside = {name: weight.detach().clone() for name, weight in weights.items()}
            return
        kept = min(self.decay, self.steps / (9 + self.steps))
        torch._foreach_lerp_(
            list(self._aside.values()), [weight.detach() for weight in weights.values()], 1 - kept
        )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._aside:
            self._swap(_trained(pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._swapped:
            self._swap(_trained(pl_module))

    def _swap(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, aside in self._aside.items():
                before = weights[name].clone()
                weights[name].copy_(aside)
                aside.copy_(before)
        self._swapped = not self._swapped

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the checkpoint's model be the average, and hold the trained weights beside it."""
        if not self._aside:
            return
        weights = {name: weight.detach() for name, weight in _trained(pl_module).items()}
        average, trained = (weights, self._aside) if self._swapped else (self._aside, weights)
        checkpoint["state_dict"] |= average
        checkpoint[AVERAGE] = {"decay": self.decay, "steps": self.steps, "trained": trained}


def _in_stage_two(module: L.LightningModule) -> bool:
    return isinstance(module, FlowerClassifier) and module.stage.number == 2


def _trained(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}

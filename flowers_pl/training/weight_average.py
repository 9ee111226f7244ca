"""Average the weights that stage 2 trains, for validation and checkpoints."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.training.classifier import FlowerClassifier

AVERAGE = f"{KEY}_average"  # the checkpoint's key for the trained weights, beside the averaged ones


class WeightAverage(L.Callback):
    """Validates and saves an exponential moving average of the weights in stage 2.

    Adam moves each weight by about its learning rate in every step, so weights fluctuate around their target,
    and the validation loss of a single step is partly chance. Averaging (Polyak and Juditsky 1992) removes
    that. Training itself is the same with and without it: the optimizer never sees the average.

    The average keeps `decay` of itself at each step, and less at first: (1 + steps) / (10 + steps), as in
    tf.train.ExponentialMovingAverage, so that the stage's initial weights soon have no influence. So the
    average is one over about the last ninth of the steps until it spans 1 / (1 - decay) steps, which takes
    890 steps with 0.99 and 2,990 with 0.997.

    Lightning's `WeightAveraging` (2.6) averages the whole module, frozen layers included, from the first
    epoch on. A callback of your own that reads weights in `on_validation_end` must come before this one,
    which restores the trained weights there.

    Args:
        decay: share of the average that one step keeps; 0 to validate and save the trained weights.

    >>> average = WeightAverage(decay=0.99)
    >>> trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=[average])
    >>> average.steps  # that were averaged so far
    0
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise FlowersError(f"--average.decay must be at least 0 and less than 1, not {decay}.")
        self.decay = decay
        self.steps = 0
        self._aside: dict[str, Tensor] = {}  # the average, or the trained weights during validation
        self._swapped = False
        self._step = 0
        self._resumed: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what is needed to resume.

        Raises:
            KeyError, TypeError: the checkpoint was changed.
        """
        if resumed := checkpoint.get(AVERAGE):
            self._resumed = {"steps": int(resumed["steps"]), "trained": dict(resumed["trained"])}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the trained weights back into the module, which has the average in a resumed run."""
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
        decay = min(self.decay, self.steps / (9 + self.steps))
        trained = [weight.detach() for weight in weights.values()]
        torch._foreach_lerp_(list(self._aside.values()), trained, 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._aside:
            self._swap(_trained(pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._swapped:
            self._swap(_trained(pl_module))

    def _swap(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, aside in self._aside.items():
                weight = weights[name].clone()
                weights[name].copy_(aside)
                aside.copy_(weight)
        self._swapped = not self._swapped

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the model's weights, and the trained weights under a key of their own."""
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

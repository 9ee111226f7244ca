"""Fit the temperature once training has ended, and save it in the best checkpoint."""

from __future__ import annotations

import logging
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from flowers_pl.core.names import KEY
from flowers_pl.core.text import plural
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.network.answers import Temperature, final_logits, whole_backbone
from flowers_pl.network.features import pooled_features
from flowers_pl.training.checkpoint_callback import best_checkpoint
from flowers_pl.training.checkpoint_files import add_to_checkpoint, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

log = logging.getLogger(__name__)


class FitTemperature(Checkpoint):
    """Fits the temperature with the best weights when training ends, and adds it to `best.ckpt`.

    `best.ckpt` also gets the settings that say how the model judges, `calibrate` and `flip_test`, as the run
    has them now: a run that has ended can be given others by a resume, which trains nothing then.

    It belongs after `RunCheckpoints`, which restores the best weights. It is a `Checkpoint` because Lightning
    runs callbacks of that class after all others.

    >>> import lightning as L
    >>> from flowers_pl.training.checkpoint_callback import RunCheckpoints
    >>> callbacks = [RunCheckpoints("checkpoints/mine"), FitTemperature()]
    >>> trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=callbacks)
    >>> [type(callback).__name__ for callback in trainer.checkpoint_callbacks]
    ['RunCheckpoints', 'FitTemperature']
    """

    def __init__(self) -> None:
        self._has_trained = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._has_trained = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit on one rank and send the temperature to the others; do nothing where no checkpoint is the
        best."""
        if (file := best_checkpoint(trainer)) is None:
            return
        module, data = cast(FlowerClassifier, pl_module), cast(Any, trainer).datamodule
        state = None
        if trainer.is_global_zero:
            if module.calibrate and module.refit is not None:
                state = module.refit.temperature
            elif module.calibrate:
                state = fit_temperature(module, data, module.compute_dtype or torch.float32).state()
            settings = {"calibrate": module.calibrate, "flip_test": module.flip_test}
            before = read_checkpoint(file)
            if before[KEY].get("temperature") != state or not settings.items() <= _known(before).items():
                add_to_checkpoint(file, {"temperature": state}, settings)
        module.temperature = Temperature.from_state(trainer.strategy.broadcast(state))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do the same for a run that was resumed with nothing left to train: Lightning skips its hooks."""
        if not self._has_trained:
            self.on_train_end(trainer, pl_module)


def _known(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {"calibrate": False, "flip_test": False, **checkpoint["hyper_parameters"]}


def fit_temperature(
    module: FlowerClassifier, data: FlowersDataModule, dtype: torch.dtype = torch.float32
) -> Temperature:
    """Fit the temperature on all validation photos, and on their mirror images where these are judged too.

    Args:
        module: the trained model.
        data: set up for `fit`.
        dtype: of the computation; the one of `predict`.
    """
    photos = data.val_photos
    features = pooled_features(
        whole_backbone(module.network, dtype, module.image_size, module.flip_test),
        lambda chunk: photos.read(chunk).to(module.device),
        np.arange(len(photos)),
    )
    with torch.no_grad():
        head = module.network.head
        logits = final_logits(head(features.to(head.weight)), None)
    found = Temperature.fit(logits, torch.from_numpy(photos.labels))
    if found.value == 1:
        log.warning(
            "The temperature stays 1: no other has the lowest log loss on %s.",
            plural(found.photos, "validation photo"),
        )
    else:
        log.info("Temperature %.4f, fitted on %s.", found.value, plural(found.photos, "validation photo"))
    return found

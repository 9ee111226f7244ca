"""Fit the temperature once training has ended, and save it in the best checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch

from flowers_pl.core.names import KEY
from flowers_pl.core.text import plural
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.network.answers import Temperature, final_logits, whole_backbone
from flowers_pl.network.features import pooled_features
from flowers_pl.training.checkpoint_callback import AddToBest
from flowers_pl.training.checkpoint_files import add_to_checkpoint, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

log = logging.getLogger(__name__)


class FitTemperature(AddToBest):
    """Fits the temperature with the best weights when training ends, and adds it to `best.ckpt`.

    `best.ckpt` also gets the settings that say how the model judges, `calibrate` and `flip_test`, as the run
    has them now: a run that has ended can be given others by a resume, which trains nothing then.

    >>> import lightning as L
    >>> from flowers_pl.training.checkpoint_callback import RunCheckpoints
    >>> callbacks = [RunCheckpoints("checkpoints/mine"), FitTemperature()]
    >>> trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=callbacks)
    >>> [type(callback).__name__ for callback in trainer.checkpoint_callbacks]
    ['RunCheckpoints', 'FitTemperature']
    """

    def add(self, trainer: L.Trainer, module: FlowerClassifier, file: Path) -> None:
        """Fit on one rank and send the temperature to the others."""
        data, state = cast(Any, trainer).datamodule, None
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

"""Fit the novelty score once training has ended, and save it in the best checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from flowers_pl.data.batches import CachedPhotos
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.sampling import even_sample
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.features import pooled_features
from flowers_pl.network.novelty import NUM_PHOTOS, Novelty
from flowers_pl.training.checkpoint_callback import AddToBest
from flowers_pl.training.checkpoint_files import add_to_checkpoint
from flowers_pl.training.classifier import FlowerClassifier


class FitNovelty(AddToBest):
    """Fits the novelty score with the best weights when training ends, and adds it to `best.ckpt`.

    >>> import lightning as L
    >>> from flowers_pl.training.checkpoint_callback import RunCheckpoints
    >>> callbacks = [RunCheckpoints("checkpoints/mine"), FitNovelty()]
    >>> trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=callbacks)
    >>> [type(callback).__name__ for callback in trainer.checkpoint_callbacks]
    ['RunCheckpoints', 'FitNovelty']
    """

    def add(self, trainer: L.Trainer, module: FlowerClassifier, file: Path) -> None:
        """Fit the score on one rank and send it to the others."""
        data, dtype = cast(Any, trainer).datamodule, module.compute_dtype or torch.float32
        found = fit_novelty(module, data, dtype) if trainer.is_global_zero else None
        state = None if found is None else found.state()
        state = trainer.strategy.broadcast(state)
        module.novelty = Novelty.from_state(state)
        if trainer.is_global_zero:
            add_to_checkpoint(file, {"unlike": state})


def fit_novelty(
    module: FlowerClassifier, data: FlowersDataModule, dtype: torch.dtype = torch.float32
) -> Novelty | None:
    """Fit the novelty score on training photos, and its limit on validation photos.

    A refit has none of these: its limit is that of the run that it repeats, for a plane that fits its own
    features.

    Args:
        module: the model whose features are scored.
        data: set up for `fit`.
        dtype: of the computation; the one of `predict`.
    """
    frozen = FrozenPart(module.network, dtype, module.image_size, whole=True)

    def features(photos: CachedPhotos, num_photos: int) -> Tensor:
        indices = even_sample(photos.labels, num_photos)
        return pooled_features(frozen, lambda chunk: photos.read(chunk).to(module.device), indices)

    training = features(data.train_photos, NUM_PHOTOS)
    if module.refit is None:
        return Novelty.fit(training, features(data.val_photos, 2 * NUM_PHOTOS))
    return (
        None if module.refit.limit is None else replace(Novelty.of_plane(training), limit=module.refit.limit)
    )

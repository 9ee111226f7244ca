"""What TensorBoard shows of a run beside its scalars: charts, confusion matrices, mistakes, heat maps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch
from flowers_pl.data.sampling import even_sample
from flowers_pl.evaluation.figures import confusion_matrix, figure_pixels, misclassified
from flowers_pl.training.classifier import FlowerClassifier

log = logging.getLogger(__name__)
CHARTS = {
    "training and validation": {
        name: ["Multiline", [f"^train_{name}$", f"^val_{name}$"]] for name in ("loss", "accuracy", "f1")
    }
}
EVERY_N_EPOCHS = (
    5  # a figure takes 0.2 s to draw and more with many classes; an epoch may take less than a second
)


def has_tensorboard(folder: Path) -> bool:
    """Return whether TensorBoard can write to a folder; log a warning where its name is not UTF-8."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        log.warning("%s is not UTF-8, so TensorBoard cannot write there and shows nothing of it.", folder)
        return False
    return True


def _writers(trainer: L.Trainer) -> list[Any]:
    """Return the event writers of this rank: none but on the first one, or where nothing is logged."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def _add_figures(trainer: L.Trainer, figures: Mapping[str, Figure]) -> None:
    pixels = {tag: figure_pixels(figure) for tag, figure in figures.items()}
    for writer in _writers(trainer):
        for tag, image in pixels.items():
            writer.add_image(tag, image, trainer.global_step, dataformats="HWC")


def _fitting(trainer: L.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING


class LogPredictions(L.Callback):
    """Shows TensorBoard the confusion matrix as training goes, and charts of the curves.

    "val/confusion_matrix" is drawn after the first epoch and after every fifth. "best/confusion_matrix" and
    "best/misclassified" are those of the best weights, with which `fit` ends. Each rank notes its predictions
    of its own photos; the sum over the ranks is exact, because no photo is on two of them.

    Args:
        photos: the most misclassified photos to show.
    """

    def __init__(self, photos: int = 8) -> None:
        self.photos = photos
        self._predictions = torch.empty(2, 0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put training and validation on one chart each, in the tab "custom scalars"."""
        for writer in _writers(trainer):
            writer.add_custom_scalars(CHARTS)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget earlier predictions."""
        num_photos = len(trainer.datamodule.val_photos)  # type: ignore[attr-defined]  # set by Lightning
        self._predictions = torch.zeros(2, num_photos, device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Note the likeliest class, counted from 1, and its probability; 0 means not predicted."""
        if len(batch.rows):
            shares, classes = outputs.float().softmax(1).max(1)
            self._predictions[:, batch.rows] = torch.stack([classes + 1.0, shares])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the figures that are due."""
        epoch = trainer.current_epoch + 1
        due = not _fitting(trainer) or epoch == 1 or epoch % EVERY_N_EPOCHS == 0
        due &= self._predictions.shape[1] > 0  # a refit validates nothing
        if trainer.sanity_checking or not due or not isinstance(pl_module, FlowerClassifier):
            return
        predictions = trainer.strategy.reduce(self._predictions, reduce_op="sum")
        if _writers(trainer):
            assert isinstance(predictions, Tensor)
            _add_figures(trainer, self._figures(trainer, pl_module, predictions.cpu().numpy()))

    def _figures(
        self, trainer: L.Trainer, module: FlowerClassifier, predictions: np.ndarray
    ) -> dict[str, Figure]:
        class_names = module.classes
        photos = trainer.datamodule.val_photos  # type: ignore[attr-defined]  # set by Lightning
        rows = np.flatnonzero(predictions[0])
        truths, predicted = photos.labels[rows], predictions[0, rows].astype(int) - 1
        matrix = np.zeros((len(class_names), len(class_names)), int)
        np.add.at(matrix, (truths, predicted), 1)
        if _fitting(trainer):
            title = f"Epoch {trainer.current_epoch + 1}"
            return {"val/confusion_matrix": confusion_matrix(matrix, class_names, title)}
        wrong = np.flatnonzero(truths != predicted)
        wrong = wrong[np.argsort(-predictions[1, rows[wrong]], kind="stable")]
        shown = wrong[: self.photos]
        mistakes = misclassified(
            [photo.permute(1, 2, 0).numpy() for photo in photos.read(rows[shown])],
            [class_names[index] for index in truths[shown]],
            [class_names[index] for index in predicted[shown]],
            predictions[1, rows[shown]].tolist(),
            total=len(wrong),
        )
        title = f"{'Best' if module.stage.chooses else 'Last'} epoch"
        matrices = confusion_matrix(matrix, class_names, title)
        return {"best/confusion_matrix": matrices, "best/misclassified": mistakes}


class LogGradCam(L.Callback):
    """Shows TensorBoard what the model looks at: Grad-CAM of the same validation photos each time.

    Training is not affected: no global generator is used, and the model is not changed.

    Args:
        photos: how many, as even over the classes as can be.
        every_n_epochs: after each so many epochs; 0 for never.
        seed: decides which photos.
    """

    def __init__(self, photos: int = 8, every_n_epochs: int = 5, seed: int = 0) -> None:
        if photos < 1 or every_n_epochs < 0:
            raise FlowersError(
                "--gradcam.photos must be at least 1 and --gradcam.every_n_epochs at least 0, not"
                f" {photos} and {every_n_epochs}."
            )
        self.photos, self.every_n_epochs, self.seed = photos, every_n_epochs, seed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the heat maps if they are due."""
        there = len(trainer.datamodule.val_photos) > 0  # type: ignore[attr-defined]  # set by Lightning
        due = there and self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if _fitting(trainer) and not trainer.sanity_checking and due and _writers(trainer):
            _add_figures(trainer, {"val/grad_cam": self._figure(trainer, pl_module)})

    def _figure(self, trainer: L.Trainer, module: L.LightningModule) -> Figure:
        from flowers_pl.explain.explanations import explain_photos
        from flowers_pl.explain.figures import grid_figure

        if not isinstance(module, FlowerClassifier):
            raise TypeError(f"LogGradCam explains a FlowerClassifier, not a {type(module).__name__}")
        photos = trainer.datamodule.val_photos  # type: ignore[attr-defined]  # set by Lightning
        rows = even_sample(photos.labels, self.photos, self.seed)
        labels = photos.labels[rows]
        explained = explain_photos(
            module, list(photos.read(rows)), [module.classes[label] for label in labels]
        )
        title = f"Grad-CAM after epoch {trainer.current_epoch + 1}"
        return grid_figure(explained, module.classes, title, columns=max(np.bincount(labels)))

"""What TensorBoard shows of a training beside its scalars: charts, mistakes, heat maps."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch, CachedPhotos
from flowers_pl.data.sampling import even_sample
from flowers_pl.runs.sheets import BLACK, GREEN, RED, Captioned, matrix_sheet, photo_sheet
from flowers_pl.training.classifier import FlowerClassifier

CHARTS = {
    "training and validation": {
        name: ["Multiline", [f"^train_{name}$", f"^val_{name}$"]] for name in ("loss", "accuracy", "f1")
    }
}


def _boards(trainer: L.Trainer) -> list[Any]:
    """The event writers of this rank: none but on the first one, or where nothing is logged."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [one.experiment for one in loggers if isinstance(one, TensorBoardLogger)]


class LogPredictions(L.Callback):
    """Shows TensorBoard the confusion matrix of each validation, under "val", and charts of the curves.

    Under "best" there is that of the best weights, which `fit` ends with, and their most confident mistakes.
    Each rank notes what it predicts for its own photos; the sum over the ranks is the whole, exactly, because
    no photo is on two. An epoch's share in this takes 10 ms for 5 classes.

    Args:
        photos: at most so many mistakes.
    """

    def __init__(self, photos: int = 8) -> None:
        self.photos = photos
        self._found = torch.empty(2, 0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put training and validation on one chart each, in the tab "custom scalars"."""
        for board in _boards(trainer):
            board.add_custom_scalars(CHARTS)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is predicted yet."""
        photos = len(trainer.datamodule.val_photos)  # type: ignore[attr-defined]  # set by Lightning
        self._found = torch.zeros(2, photos, device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Note the likeliest class, counted from 1, and its probability; 0 means that nobody judged it."""
        if len(batch.rows):
            shares, places = outputs.float().softmax(1).max(1)
            self._found[:, batch.rows] = torch.stack([places + 1.0, shares])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, FlowerClassifier):
            return
        found = trainer.strategy.reduce(self._found, reduce_op="sum")
        boards = _boards(trainer)
        if boards:
            assert isinstance(found, Tensor)
            self._log(trainer, pl_module.classes, found.cpu().numpy(), boards)

    def _log(self, trainer: L.Trainer, classes: list[str], found: np.ndarray, boards: list[Any]) -> None:
        photos = trainer.datamodule.val_photos  # type: ignore[attr-defined]  # set by Lightning
        training = trainer.state.fn == TrainerFn.FITTING
        group, when = ("val", f"epoch {trainer.current_epoch + 1}") if training else ("best", "best epoch")
        judged = np.flatnonzero(found[0])
        truths, predicted = photos.labels[judged], found[0, judged].astype(int) - 1
        matrix = np.zeros((len(classes), len(classes)), int)
        np.add.at(matrix, (truths, predicted), 1)
        title = f"{when}: {len(judged)} judged, {(truths == predicted).mean():.1%} right; rows: truth"
        sheets = {"confusion_matrix": matrix_sheet(matrix, classes, title)}
        if not training:
            wrong = judged[truths != predicted]
            sheets["misclassified"] = self._mistakes(photos, wrong, found, classes)
        for board in boards:
            for name, sheet in sheets.items():
                board.add_image(f"{group}/{name}", sheet, trainer.global_step, dataformats="HWC")

    def _mistakes(
        self, photos: CachedPhotos, wrong: np.ndarray, found: np.ndarray, classes: list[str]
    ) -> np.ndarray:
        shown = wrong[np.argsort(-found[1, wrong], kind="stable")][: self.photos]
        pictures = []
        for row, pixels in zip(shown, photos.read(shown), strict=True):
            predicted = f"{classes[int(found[0, row]) - 1]}, {found[1, row]:.0%}"
            lines = (f"truth: {classes[photos.labels[row]]}", predicted)
            pictures.append(Captioned(pixels.permute(1, 2, 0).numpy(), lines))
        return photo_sheet(pictures, f"the most confident of {len(wrong)} mistakes")


class LogGradCam(L.Callback):
    """Shows TensorBoard what the model looks at: Grad-CAM of the same validation photos each time.

    Training goes as it would without: no global generator is used, and the model is not touched.

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
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        boards = _boards(trainer)
        if training and due and boards:
            sheet = self._sheet(trainer, pl_module)
            for board in boards:
                board.add_image("val/grad_cam", sheet, trainer.global_step, dataformats="HWC")

    def _sheet(self, trainer: L.Trainer, module: L.LightningModule) -> np.ndarray:
        from flowers_pl.explain.explanations import (  # the library takes half a second
            beside,
            explain_photos,
        )

        if not isinstance(module, FlowerClassifier):
            raise TypeError(f"LogGradCam explains a FlowerClassifier, not a {type(module).__name__}")
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        places = even_sample(data.val_photos.labels, self.photos, self.seed)
        truths = [module.classes[label] for label in data.val_photos.labels[places]]
        pictures = []
        for one in explain_photos(module, list(data.val_photos.read(places)), truths):
            colour = BLACK if one.truth is None else GREEN if one.truth == one.predicted else RED
            caption = f"{one.predicted} {one.probabilities[one.predicted]:.0%}"
            pictures.append(Captioned(beside(one), (f"truth: {one.truth}", caption), colour))
        return photo_sheet(pictures, f"Grad-CAM after epoch {trainer.current_epoch + 1}", 2)

"""Predictions by an exported model, of the photos that the command line names."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from flowers_pl.data.batches import Prediction
from flowers_pl.data.datamodule import FlowersDataModule

log = logging.getLogger(__name__)


def predict_exported(file: Path, data: FlowersDataModule) -> tuple[list[str], list[Prediction]]:
    """Predict photos by an exported model; this needs neither its checkpoint nor its training photos.

    The loader's workers decode and resize while the model runs; its own resize leaves such photos as they
    are.

    Args:
        file: .pt2, .pte or .onnx, int8 or not.
        data: with a `predict_root`; takes classes and image size from the file.

    Returns:
        The classes, and a prediction for each batch.

    Raises:
        FlowersError: the file is not one that `export` wrote, or there are no photos.
    """
    from flowers_pl.export.load import Exported

    exported = Exported.open(file)
    log.info("Exported model: %s", file)
    data.classes, data.image_size = exported.classes, exported.image_size
    data.setup("predict")
    return exported.classes, [
        Prediction(batch.rows, torch.from_numpy(exported(batch.photos)), batch.unreadable)
        for batch in data.predict_dataloader()
    ]

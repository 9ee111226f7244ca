"""Transfer learning with MobileNetV2 on photos of flowers, in PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowers_pl.augment import Augmentation
    from flowers_pl.average import WeightAverage
    from flowers_pl.checkpointing import AtomicCheckpointIO
    from flowers_pl.classifier import FlowerClassifier
    from flowers_pl.cli import main
    from flowers_pl.datamodule import FlowersDataModule
    from flowers_pl.decode import load_photo, read_photo, resize_photo
    from flowers_pl.drawn import draw_flower
    from flowers_pl.errors import FlowersError
    from flowers_pl.finetune import StageEarlyStopping, UnfreezeTopLayers
    from flowers_pl.mobilenet import FlowerNet

_HOMES = {
    "AtomicCheckpointIO": "checkpointing",
    "Augmentation": "augment",
    "FlowerClassifier": "classifier",
    "FlowerNet": "mobilenet",
    "FlowersDataModule": "datamodule",
    "FlowersError": "errors",
    "RunCheckpoints": "saving",
    "StageEarlyStopping": "finetune",
    "UnfreezeTopLayers": "finetune",
    "WeightAverage": "average",
    "draw_flower": "drawn",
    "load_photo": "decode",
    "main": "cli",
    "read_photo": "decode",
    "resize_photo": "decode",
}
__all__ = [*_HOMES]

try:
    __version__ = version("flowers_pl")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0"


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: torch and Lightning take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Transfer learning with MobileNetV2 on photos of flowers, in PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowers_pl.cli.app import main
    from flowers_pl.core.errors import FlowersError
    from flowers_pl.data.augmentation import Augmentation
    from flowers_pl.data.datamodule import FlowersDataModule
    from flowers_pl.data.decoding import load_photo, read_photo, resize_photo
    from flowers_pl.data.drawings import draw_flower
    from flowers_pl.network.mobilenet import FlowerNet
    from flowers_pl.training.checkpoint_callback import RunCheckpoints
    from flowers_pl.training.checkpoint_files import AtomicCheckpointIO
    from flowers_pl.training.classifier import FlowerClassifier
    from flowers_pl.training.stage_callbacks import StageEarlyStopping, UnfreezeTopLayers
    from flowers_pl.training.weight_average import WeightAverage

_HOMES = {
    "AtomicCheckpointIO": "training.checkpoint_files",
    "Augmentation": "data.augmentation",
    "FlowerClassifier": "training.classifier",
    "FlowerNet": "network.mobilenet",
    "FlowersDataModule": "data.datamodule",
    "FlowersError": "core.errors",
    "RunCheckpoints": "training.checkpoint_callback",
    "StageEarlyStopping": "training.stage_callbacks",
    "UnfreezeTopLayers": "training.stage_callbacks",
    "WeightAverage": "training.weight_average",
    "draw_flower": "data.drawings",
    "load_photo": "data.decoding",
    "main": "cli.app",
    "read_photo": "data.decoding",
    "resize_photo": "data.decoding",
}
__all__ = [
    "AtomicCheckpointIO",
    "Augmentation",
    "FlowerClassifier",
    "FlowerNet",
    "FlowersDataModule",
    "FlowersError",
    "RunCheckpoints",
    "StageEarlyStopping",
    "UnfreezeTopLayers",
    "WeightAverage",
    "draw_flower",
    "load_photo",
    "main",
    "read_photo",
    "resize_photo",
]

try:
    __version__ = version("flowers_pl")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0"


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: torch and Lightning take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

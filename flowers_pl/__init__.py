"""Transfer learning with MobileNetV2 on photos of flowers, in PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowers_pl.cli.app import main
    from flowers_pl.core.errors import FlowersError
    from flowers_pl.core.system import best_precision
    from flowers_pl.data.augmentation import augment
    from flowers_pl.data.batches import Batch
    from flowers_pl.data.datamodule import FlowersDataModule
    from flowers_pl.data.decoding import load_photo, read_photo, resize_photo
    from flowers_pl.data.drawings import draw_flower
    from flowers_pl.data.draws import epoch_draws
    from flowers_pl.data.prefetch import PrefetchLoader, ThreadPlan
    from flowers_pl.data.ranges import Augmentation
    from flowers_pl.data.sampling import BatchKey, BatchSampler
    from flowers_pl.evaluation.figures import (
        augmentation_sheet,
        confusion_matrix,
        misclassified,
        reliability_diagram,
        training_curves,
    )
    from flowers_pl.evaluation.report import evaluate
    from flowers_pl.explain.explanations import explain_photos
    from flowers_pl.explain.figures import explanation_figure, grid_figure
    from flowers_pl.export.load import Exported
    from flowers_pl.export.verify import check_export
    from flowers_pl.export.write import export_onnx, export_torch
    from flowers_pl.network.fast_frozen import FrozenPart
    from flowers_pl.network.fast_trained import TrainedPart
    from flowers_pl.network.mobilenet import FlowerNet
    from flowers_pl.network.weights import load_weights
    from flowers_pl.runs.tables import EpochTable
    from flowers_pl.training.checkpoint_callback import RunCheckpoints
    from flowers_pl.training.checkpoint_files import AtomicCheckpointIO
    from flowers_pl.training.classifier import FlowerClassifier
    from flowers_pl.training.novelty_callback import FitNovelty
    from flowers_pl.training.stage_callbacks import StageEarlyStopping, UnfreezeTopLayers
    from flowers_pl.training.weight_average import WeightAverage

_MODULES = {
    "AtomicCheckpointIO": "training.checkpoint_files",
    "Augmentation": "data.ranges",
    "Batch": "data.batches",
    "BatchKey": "data.sampling",
    "BatchSampler": "data.sampling",
    "EpochTable": "runs.tables",
    "Exported": "export.load",
    "FitNovelty": "training.novelty_callback",
    "FlowerClassifier": "training.classifier",
    "FlowerNet": "network.mobilenet",
    "FlowersDataModule": "data.datamodule",
    "FlowersError": "core.errors",
    "FrozenPart": "network.fast_frozen",
    "PrefetchLoader": "data.prefetch",
    "RunCheckpoints": "training.checkpoint_callback",
    "StageEarlyStopping": "training.stage_callbacks",
    "ThreadPlan": "data.prefetch",
    "TrainedPart": "network.fast_trained",
    "UnfreezeTopLayers": "training.stage_callbacks",
    "WeightAverage": "training.weight_average",
    "augment": "data.augmentation",
    "augmentation_sheet": "evaluation.figures",
    "best_precision": "core.system",
    "check_export": "export.verify",
    "confusion_matrix": "evaluation.figures",
    "draw_flower": "data.drawings",
    "epoch_draws": "data.draws",
    "evaluate": "evaluation.report",
    "explain_photos": "explain.explanations",
    "explanation_figure": "explain.figures",
    "export_onnx": "export.write",
    "export_torch": "export.write",
    "grid_figure": "explain.figures",
    "load_photo": "data.decoding",
    "load_weights": "network.weights",
    "main": "cli.app",
    "misclassified": "evaluation.figures",
    "read_photo": "data.decoding",
    "reliability_diagram": "evaluation.figures",
    "resize_photo": "data.decoding",
    "training_curves": "evaluation.figures",
}
__all__ = [
    "AtomicCheckpointIO",
    "Augmentation",
    "Batch",
    "BatchKey",
    "BatchSampler",
    "EpochTable",
    "Exported",
    "FitNovelty",
    "FlowerClassifier",
    "FlowerNet",
    "FlowersDataModule",
    "FlowersError",
    "FrozenPart",
    "PrefetchLoader",
    "RunCheckpoints",
    "StageEarlyStopping",
    "ThreadPlan",
    "TrainedPart",
    "UnfreezeTopLayers",
    "WeightAverage",
    "augment",
    "augmentation_sheet",
    "best_precision",
    "check_export",
    "confusion_matrix",
    "draw_flower",
    "epoch_draws",
    "evaluate",
    "explain_photos",
    "explanation_figure",
    "export_onnx",
    "export_torch",
    "grid_figure",
    "load_photo",
    "load_weights",
    "main",
    "misclassified",
    "read_photo",
    "reliability_diagram",
    "resize_photo",
    "training_curves",
]

try:
    __version__ = version("flowers_pl")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0"


def __getattr__(name: str) -> object:
    """Import a public name on first use: torch and Lightning take seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The options of `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flowers_pl.cli.options import Options
from flowers_pl.core.names import CONFIG
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.runs.tensorboard import LogGradCam
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.stage_callbacks import StageEarlyStopping, UnfreezeTopLayers
from flowers_pl.training.weight_average import WeightAverage

CALLBACKS = {
    "unfreeze": UnfreezeTopLayers,
    "early_stopping": StageEarlyStopping,
    "gradcam": LogGradCam,
    "average": WeightAverage,  # after what looks at the weights
}


def parser(run: Path | None = None) -> Options:
    """Return the options of `fit`; the settings of the run that is resumed or repeated are defaults."""
    options = Options("fit", [run / CONFIG] if run else None)
    options.add_config()
    options.add(
        "seed_everything", int, 0, "Seed of order, augmentation, dropout and the head's first weights."
    )
    options.add("run_name", str | None, None, "Name of the folder below checkpoints/.")
    options.add(
        "export",
        Literal["torch", "onnx", "none"],
        "torch",
        "Format of the final model that the run ends with.",
    )
    options.add(
        "save_every_n_steps",
        int | None,
        None,
        "Save last.ckpt every so many training steps too, not only at the end of each epoch.",
    )
    options.add_class("model", FlowerClassifier)
    options.add_class("data", FlowersDataModule)
    for name, callback in CALLBACKS.items():
        options.add_class(name, callback)
    for target in ("data.seed", "model.seed"):
        options.parser.link_arguments("seed_everything", target)
    options.add(
        "ckpt_path",
        str | None,
        None,
        "Checkpoint to resume from, a run's last.ckpt: settings are that run's where none are given.",
    )
    options.add(
        "refit",
        str | None,
        None,
        "Folder of a run to repeat on training and validation photos together: its settings are defaults, and"
        " each stage has the epochs that it kept.",
    )
    options.add_trainer({})
    return options

"""Which options each subcommand has, and what their defaults are: the recipe's, or a checkpoint's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from flowers_pl.cli.arguments import JUDGING, checkpoint_for, exported_for
from flowers_pl.cli.audit import audit
from flowers_pl.cli.explain import explain
from flowers_pl.cli.export import export
from flowers_pl.cli.messages import OneLineParser
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import CONFIG, KEY
from flowers_pl.core.signals import StopSignals
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.runs.folder import settings_of
from flowers_pl.runs.settings import RunSettings
from flowers_pl.runs.tensorboard import LogGradCam
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.stage_callbacks import StageEarlyStopping, UnfreezeTopLayers
from flowers_pl.training.weight_average import WeightAverage

OTHERS: dict[str, Callable[..., None]] = {"audit": audit, "explain": explain, "export": export}

SUMMARIES = {
    "fit": "Train in two stages, judge the best checkpoint, and write the final model.",
    "validate": "Judge a checkpoint on the validation side: loss, accuracy, F1.",
    "test": "Report on a checkpoint: every figure, pictures, a table of the photos, misclassified ones.",
    "predict": "Write a table of photos with the probability of each class.",
}
GO_ON = "Checkpoint to go on from, a run's last.ckpt: settings are that run's where none are given."
TRAINER = "Lightning's Trainer"
NEWEST = "Checkpoint; the newest best.ckpt below checkpoints/ where none is given."


class FlowersOptions(LightningCLI):
    """The options of fit, validate, test, predict, audit, explain and export, and their defaults.

    `fit` has all settings. The others take the model's from its checkpoint, and the data's too, where the
    command line does not say otherwise.

    Args:
        args: the command line, without the program's name.
        signals: what ends the program, and when.
    """

    trainer: Trainer
    datamodule: FlowersDataModule
    model: FlowerClassifier

    def __init__(self, args: list[str], signals: StopSignals) -> None:
        self._adding, self._signals, self._changed = "", signals, False
        command = next((arg for arg in args if not arg.startswith("-")), "")
        self._exported = exported_for(command, args)
        asked = bool({"-h", "--help"} & set(args))
        self._ckpt = None if asked or self._exported else checkpoint_for(command, args)
        settings = self._ckpt.parent / CONFIG if self._ckpt and command == "fit" else None
        ours = read_checkpoint(self._ckpt)[KEY] if self._ckpt and command in JUDGING else {}
        self._trained_on = settings_of(self._ckpt, ours) if self._ckpt and ours else {}
        self._trained_in = ours.get("precision")
        super().__init__(
            FlowerClassifier,
            FlowersDataModule,
            save_config_callback=RunSettings,
            trainer_defaults={
                "max_epochs": -1,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "deterministic": "warn",
                "enable_model_summary": False,
            },
            seed_everything_default=0,
            parser_kwargs={
                "prog": "python -m flowers_pl",
                "description": "Transfer learning with MobileNetV2 on photos of flowers.",
                **({"fit": {"default_config_files": [str(settings)]}} if settings else {}),
            },
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    # ---------------------------------------------------------------- options

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, and which arguments of the Trainer's methods are no options of theirs."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only", "verbose"},
            "test": {"model", "dataloaders", "datamodule", "weights_only", "verbose"},
            "predict": {"model", "dataloaders", "datamodule", "weights_only", "return_predictions"},
        }

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Lightning's subcommands, in our words, and beside them those that need no Trainer."""
        super()._add_subcommands(parser, **kwargs)
        assert parser._subcommands_action is not None
        for action in parser._subcommands_action._choices_actions:
            action.help = SUMMARIES[action.dest]
        for name, function in OTHERS.items():
            summary = (function.__doc__ or "").partition("\n")[0]
            other = self.parser_class(description=summary, usage=_usage(name))
            other.add_function_arguments(function, as_group=False)
            parser._subcommands_action.add_subcommand(name, other, help=summary)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        self._adding = subcommand
        words = {"description": SUMMARIES[subcommand], "usage": _usage(subcommand)}
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs | words)
        _tidy_help(parser, GO_ON if subcommand == "fit" else NEWEST)
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=0,
            help="Decides order, augmentation, dropout, the first head.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self._adding == "fit":
            super().add_core_arguments_to_parser(parser)
            return
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.set_defaults({"trainer.devices": 1})
        parser.add_lightning_class_args(FlowersDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "data.seed")
        if self._adding == "fit":
            parser.link_arguments("seed_everything", "model.seed")
            parser.add_lightning_class_args(UnfreezeTopLayers, "unfreeze")
            parser.add_lightning_class_args(StageEarlyStopping, "early_stopping")
            parser.add_lightning_class_args(LogGradCam, "gradcam")
            parser.add_lightning_class_args(WeightAverage, "average")  # after what looks at the weights
            parser.add_argument(
                "--run_name", type=str | None, default=None, help="Name of the folder below checkpoints/."
            )
            parser.add_argument(
                "--export",
                type=Literal["torch", "onnx", "none"],
                default="torch",
                help="Format of the final model that the run ends with.",
            )
            parser.add_argument(
                "--save_every_n_steps",
                type=int | None,
                default=None,
                help="Save last.ckpt after so many training steps too, not at each epoch's end only.",
            )
        else:
            parser.set_defaults({f"data.{name}": value for name, value in self._trained_on.items()})
        if self._adding == "predict":
            parser.add_argument(
                "--exported",
                type=str | None,
                default=None,
                help="A .pt2 or .onnx that export wrote, in place of a checkpoint; runs on the CPU.",
            )
            parser.add_argument(
                "--out",
                type=str | None,
                default=None,
                help="The table to write; default predictions.csv beside the checkpoint or exported model.",
            )

    def _parse_ckpt_path(self) -> None:
        """Settings of a checkpoint were taken before parsing, as defaults, so that the command line wins."""
        config = self.config[self.config.subcommand]
        for name, taken in (("ckpt_path", self._ckpt), ("exported", self._exported)):
            given = config.get(name)
            if self.config.subcommand not in OTHERS and given is not None and Path(given) != taken:
                raise FlowersError(f"--{name} must be given on the command line, not in a config file.")

    # ---------------------------------------------------------------- making things

    def instantiate_classes(self) -> None:
        if self.subcommand not in OTHERS:
            super().instantiate_classes()

    def _set_seed(self) -> None:
        if self.config.subcommand not in OTHERS:
            seed = self.config[self.config.subcommand].seed_everything
            if not 0 <= seed < 2**32:
                raise FlowersError(f"--seed_everything must be from 0 to {2**32 - 1}, not {seed}.")
            super()._set_seed()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in OTHERS:
            OTHERS[subcommand](**self.parser.instantiate(self.config)[subcommand])
        else:
            super()._run_subcommand(subcommand)


def _usage(subcommand: str) -> str:
    """One line; argparse's own lists all options, which the help lists anyway."""
    return f"python -m flowers_pl {subcommand} [options]"


def _tidy_help(parser: LightningArgumentParser, ckpt_path: str) -> None:
    """Say what --ckpt_path is, and end with the Trainer's many options, which few need."""
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action.help, str):  # Lightning's: its defaults, some not ours, and Sphinx's roles
                action.help = re.sub(r" ?Default: ``[^`]*``\.?", "", action.help)
                action.help = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", action.help)
            if action.dest == "ckpt_path":
                action.help, group.title = ckpt_path, "Checkpoint"
            elif action.dest == "trainer":
                group.title = TRAINER
    parser._action_groups = sorted(parser._action_groups, key=lambda group: group.title == TRAINER)

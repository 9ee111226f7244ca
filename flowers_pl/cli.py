"""The command line: LightningCLI with the recipe in its defaults."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from flowers_pl.arguments import JUDGING, checkpoint_for, exported_for
from flowers_pl.audit import audit
from flowers_pl.average import WeightAverage
from flowers_pl.batches import Prediction
from flowers_pl.board import LogGradCam, LogPredictions
from flowers_pl.checkpointing import BEST, KEY, LAST, AtomicCheckpointIO, read_checkpoint
from flowers_pl.classifier import FlowerClassifier
from flowers_pl.commands import (
    CHECKED,
    explain,
    export,
    predict_exported,
    write_final,
)
from flowers_pl.console import OneLineParser, quieten
from flowers_pl.datamodule import FlowersDataModule
from flowers_pl.errors import FlowersError
from flowers_pl.finetune import StageEarlyStopping, UnfreezeTopLayers
from flowers_pl.precision import best_precision
from flowers_pl.predictions import prediction_rows, prediction_table, write_predictions
from flowers_pl.resuming import CONFIG, RunSettings, finished, how_to_go_on, job_name, log_changes, restarted
from flowers_pl.runs import CARD, CURVES, RUNS, draw_curves, settings_of, unused, write_report
from flowers_pl.saving import RunCheckpoints
from flowers_pl.stopping import Stopped, StopSignals, end_with_launcher, lost_contact
from flowers_pl.tracking import METRICS, DataFiles, EpochTable, Throughput
from flowers_pl.weights import check_weights

log = logging.getLogger("flowers_pl")
OTHERS: dict[str, Callable[..., None]] = {"audit": audit, "explain": explain, "export": export}
RUN_NAME = "FLOWERS_PL_RUN_NAME"  # hands the run's name on to the processes that Lightning starts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: without the program's name; None for those of this process.

    Returns:
        The exit code: 0; 1 after a mistake that the user can mend, or without room on the disk, which is then
        told in one sentence; 143 after SIGTERM; 130 after Ctrl-C.
    """
    quieten()
    launched = RUN_NAME in os.environ
    try:
        with StopSignals() as signals:
            FlowersCLI(sys.argv[1:] if args is None else list(args), signals)
    except FlowersError as error:
        print(f"flowers_pl: {error}", file=sys.stderr)
        return 1
    except MisconfigurationException as error:  # of the Trainer's settings, by Lightning
        print(f"flowers_pl: {' '.join(str(error).split())} (an option --trainer.…)", file=sys.stderr)
        return 1
    except Stopped as stop:
        log.info("flowers_pl: %s", stop)
        return int(stop.code or 0)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"flowers_pl: {error.strerror}; make room and start again.", file=sys.stderr)
        return 1
    finally:
        if not launched:  # or what this process starts later would take it for its own
            os.environ.pop(RUN_NAME, None)
    return 0


class FlowersCLI(LightningCLI):
    """fit, validate, test, predict, audit, explain and export.

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
        """Lightning's subcommands, and beside them those that need no Trainer."""
        super()._add_subcommands(parser, **kwargs)
        for name, function in OTHERS.items():
            summary = (function.__doc__ or "").partition("\n")[0]
            other = self.parser_class(description=summary)
            other.add_function_arguments(function, as_group=False)
            assert parser._subcommands_action is not None
            parser._subcommands_action.add_subcommand(name, other, help=summary)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        self._adding = subcommand
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

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
            OTHERS[subcommand](**self.parser.instantiate_classes(self.config)[subcommand])
        else:
            super()._run_subcommand(subcommand)

    def before_instantiate_classes(self) -> None:
        if self.subcommand in OTHERS:
            return
        trainer = self.config[self.subcommand].trainer
        if trainer.precision is None:  # what was trained exactly is judged exactly
            exact = self._trained_in == "32-true"
            trainer.precision = self._trained_in if exact else best_precision(trainer.accelerator)
        if self.subcommand == "fit":
            self._run = self._run_folder()
            if self._ckpt is None:
                check_weights(self.config.fit.model.weights)
            else:
                now = self._parser("fit").dump(self.config.fit, skip_unset=False)
                self._changed = log_changes(self._run / CONFIG, now)
        else:
            self.save_config_callback = None
            judge_by = self._exported or self._ckpt
            assert judge_by is not None
            self._run = judge_by.parent

    def _run_folder(self) -> Path:
        if self._ckpt is not None:
            return self._ckpt.parent
        if "LOCAL_RANK" in os.environ and RUN_NAME in os.environ:
            end_with_launcher()
            return RUNS / os.environ[RUN_NAME]
        name = self.config.fit.run_name or job_name() or unused(time.strftime("%Y%m%d-%H%M%S"))
        if Path(name).name != name or name == "..":
            raise FlowersError(f"--run_name must be the name of a folder below {RUNS}, not {name!r}.")
        if (last := RUNS / name / LAST).exists():
            if not restarted():
                raise FlowersError(
                    f"--run_name: {str(RUNS / name)!r} exists already; give another name, or resume with"
                    f" --ckpt_path {last}."
                )
            read_checkpoint(last)
            self._ckpt = last
        os.environ[RUN_NAME] = name
        return RUNS / name

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            kwargs |= {"logger": False, "enable_checkpointing": False}
        elif not given["fast_dev_run"]:
            board = TensorBoardLogger(self._run.parent, self._run.name, version="", default_hp_metric=False)
            every = self.config.fit.save_every_n_steps
            kwargs |= {
                "default_root_dir": given["default_root_dir"] or str(self._run),
                "logger": [board, EpochTable(self._run / METRICS)],
                "callbacks": [
                    *(given["callbacks"] or []),
                    Throughput(),
                    DataFiles(self._run),
                    LogPredictions(),
                    RunCheckpoints(str(self._run), every, self._signals),
                ],
                "plugins": [*(given["plugins"] or []), AtomicCheckpointIO()],
            }
        return super().instantiate_trainer(**kwargs)

    # ---------------------------------------------------------------- subcommands

    def fit(self, model: FlowerClassifier, **kwargs: Any) -> None:
        """Train, then judge the validation side with the best weights."""
        if self._ckpt is not None and not self._changed and finished(self._ckpt) and self._is_concluded():
            log.info("This run is finished; all that it left lies in %s.", self._run)
            return
        try:
            self._fit(model)
        except Stopped as stop:
            stop.advice = how_to_go_on(self._run)
            raise
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            raise FlowersError(
                f"Another process of this run has ended, so this one ends too; {how_to_go_on(self._run)}"
            ) from error

    def _fit(self, model: FlowerClassifier) -> None:
        self.datamodule.check_ranks(self.trainer.world_size)
        ckpt = None if self._ckpt is None else str(self._ckpt)
        self.trainer.fit(model, datamodule=self.datamodule, ckpt_path=ckpt, weights_only=True)
        best = next(
            (one for one in self.trainer.checkpoint_callbacks if isinstance(one, RunCheckpoints)), None
        )
        if best is None or best.best_epoch < 0:
            return
        metrics = self._judge(self.trainer.validate, model)
        _log_settings(self.trainer, self.config.fit.as_dict(), metrics)
        if self.trainer.is_global_zero:
            self._conclude(model, best.best_epoch, metrics)

    def _is_concluded(self) -> bool:
        """Whether `_conclude` has been here and got to its end."""
        final = {"torch": ["final.pt2", CARD], "onnx": ["final.onnx", CARD], "none": []}[
            self.config.fit.export
        ]
        return all((self._run / name).is_file() for name in [CURVES, *final])

    def _conclude(self, model: FlowerClassifier, best_epoch: int, metrics: dict[str, float]) -> None:
        """What a run ends with, on one rank: its curves, its final model, and a word on where all is."""
        draw_curves(self._run, best_epoch)
        if self.config.fit.export != "none":
            suffix = {"torch": ".pt2", "onnx": ".onnx"}[self.config.fit.export]
            final = self._run / f"final{suffix}"
            write_final(model.cpu(), self._run / BEST, final, self.datamodule, checked=CHECKED)
        log.info("Best epoch: %d. On the validation side, which chose it:", best_epoch + 1)
        print(_lines(metrics))
        log.info("Everything of this run lies in %s; 'tensorboard --logdir %s' shows it.", self._run, RUNS)

    def validate(self, **kwargs: Any) -> None:
        """Judge the validation side."""
        metrics = self._judge(self.trainer.validate, self._load())
        data = self.datamodule
        print(f"{len(data.judged)} validation {data.kind}; this side chose the checkpoint.")
        print(_lines(metrics))

    def test(self, **kwargs: Any) -> None:
        """Judge the photos of --data.test_root, or else the validation side, and write a report."""
        model = self._load()
        self._judge(self.trainer.test, model)
        report = write_report(self._run, str(self._ckpt), self.datamodule, model.classes, model.tested)
        print(report.text())
        log.info("Written to %s: test.txt, test.json, predictions.csv and plots.", self._run)

    def _judge(self, how: Any, model: FlowerClassifier) -> dict[str, float]:
        how(model, datamodule=self.datamodule, verbose=False)
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def predict(self, **kwargs: Any) -> None:
        """Write predictions.csv and show its first rows."""
        if self._exported is not None:
            classes, found = predict_exported(self._exported, self.datamodule)
        else:
            model = self._load()
            classes = model.classes
            found = cast("list[Prediction]", self.trainer.predict(model, datamodule=self.datamodule))
        rows = prediction_rows(found, [photo.path for photo in self.datamodule.judged], classes)
        file = self._run / "predictions.csv"
        write_predictions(file, rows, classes)
        print(*prediction_table(rows), sep="\n")
        log.info("%d predictions written to %s.", len(rows), file)

    def _load(self) -> FlowerClassifier:
        assert self._ckpt is not None
        log.info("Checkpoint: %s", self._ckpt)
        return FlowerClassifier.load(self._ckpt)


def _lines(metrics: dict[str, float]) -> str:
    """Metrics for the screen, a line each."""
    return "\n".join(f"  {name.partition('_')[2]:<10} {value:.4f}" for name, value in metrics.items())


def _log_settings(trainer: Trainer, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Give TensorBoard the run's settings beside its result."""
    chosen = {
        f"{group}.{name}": str(value)
        for group in ("model", "data", "unfreeze", "early_stopping", "average")
        for name, value in settings[group].items()
    }
    for board in trainer.loggers:
        board.log_hyperparams(chosen, {f"best/{name}": value for name, value in metrics.items()})

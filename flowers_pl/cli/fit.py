"""`fit`: train in two stages, evaluate the best checkpoint, write the final model."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.cli.checkpoints import check_not_in_config, checkpoint_to_resume
from flowers_pl.cli.commands import RUN_NAME, SUMMARIES
from flowers_pl.cli.evaluating import lines, metrics_of
from flowers_pl.cli.options import Options, given
from flowers_pl.cli.trainer import choose_precision, make_trainer, naming_option, seed
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import check_writable
from flowers_pl.core.names import BEST, CARD, CONFIG, CURVES, KEY, LAST, METRICS, RUNS
from flowers_pl.core.screen import show
from flowers_pl.core.signals import Stopped, StopSignals, end_with_launcher, lost_contact
from flowers_pl.core.text import plural, printable
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.network.weights import check_weights
from flowers_pl.runs.final_model import NUM_CHECKED, write_final
from flowers_pl.runs.ownership import RunFolder
from flowers_pl.runs.progress import EpochLines
from flowers_pl.runs.results import draw_curves, validation_images
from flowers_pl.runs.settings import RunSettings
from flowers_pl.runs.tables import DataFiles, EpochTable, Throughput
from flowers_pl.runs.tensorboard import LogGradCam, LogPredictions, has_tensorboard
from flowers_pl.training.checkpoint_callback import RunCheckpoints
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint, unusable
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.novelty_callback import FitNovelty
from flowers_pl.training.resume import (
    epochs_after,
    finished,
    how_to_resume,
    job_name,
    log_changes,
    read_settings,
    remove_unbegun,
    restarted,
)
from flowers_pl.training.stage_callbacks import StageEarlyStopping, UnfreezeTopLayers
from flowers_pl.training.weight_average import WeightAverage

log = logging.getLogger(__name__)
FINAL = {"torch": "final.pt2", "onnx": "final.onnx"}
CALLBACKS = {
    "unfreeze": UnfreezeTopLayers,
    "early_stopping": StageEarlyStopping,
    "gradcam": LogGradCam,
    "average": WeightAverage,  # after what looks at the weights
}


@dataclass
class Run:
    """A training run.

    Args:
        folder: where all that it leaves goes.
        owned: the same, where this process owns it; None on other ranks, and in a trial that leaves nothing.
        checkpoint: what it resumes from, if anything.
        changed: whether its settings differ from those that the checkpoint was trained with.
        settings: of the command line.
        model: what is trained.
        data: the photos.
        trainer: runs the loops.
    """

    folder: Path
    owned: RunFolder | None
    checkpoint: Path | None
    changed: bool
    settings: Namespace
    model: FlowerClassifier
    data: FlowersDataModule
    trainer: L.Trainer


def run(args: list[str], signals: StopSignals) -> None:
    """Train, then evaluate the validation side with the best weights.

    Args:
        args: the command line, without the subcommand.
        signals: end the program where it can be resumed.
    """
    made = _make(args, signals)
    try:
        _run(made, args)
    finally:
        if made.owned is not None:
            made.owned.release()


def _run(made: Run, args: list[str]) -> None:
    if made.checkpoint and not made.changed and finished(made.checkpoint) and _is_concluded(made):
        log.info("This run is finished; its results are in %s.", made.folder)
        return
    try:
        with naming_option(args):
            _train(made)
    except Stopped as stop:
        stop.advice = how_to_resume(made.folder)
        raise
    except FlowersError:
        if made.trainer.is_global_zero and made.checkpoint is None:
            remove_unbegun(made.folder)
        raise
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        raise FlowersError(
            f"Another process of this run has ended, so this one ends too; {how_to_resume(made.folder)}"
        ) from error


def parser(checkpoint: Path | None = None) -> Options:
    """Return the options of `fit`; those of a run that is resumed have its settings as defaults."""
    options = Options("fit", SUMMARIES["fit"], [checkpoint.parent / CONFIG] if checkpoint else None)
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
    options.add_trainer({})
    return options


def _make(args: list[str], signals: StopSignals) -> Run:
    """Parse the command line and make what it asks for, refusing at once what could not work in the end."""
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is not None:
        read_settings(checkpoint.parent / CONFIG)
    options = parser(checkpoint)
    settings = options.parse(args)
    check_not_in_config(settings, ckpt_path=checkpoint)
    if checkpoint and not (given("--data.root", args) or os.path.isabs(settings.data.root)):
        settings.data.root = read_checkpoint(checkpoint)[KEY]["data"]["root"]  # config.yaml of 0.1.0
    seed(settings)
    choose_precision(settings)
    if checkpoint is None:
        check_weights(settings.model.weights)
    folder, owned, checkpoint = _run_folder(settings, checkpoint)
    try:
        written = options.dump(settings)
        changed = checkpoint is not None and log_changes(folder / CONFIG, written)
        made = options.parser.instantiate(settings)
        trainer = _trainer(made, args, folder, RunSettings(folder / CONFIG, written), signals)
    except BaseException:
        if owned is not None:
            owned.release()
        raise
    return Run(folder, owned, checkpoint, changed, settings, made.model, made.data, trainer)


def _trainer(
    made: Namespace, args: list[str], folder: Path, writer: RunSettings, signals: StopSignals
) -> L.Trainer:
    own = [made[name] for name in CALLBACKS]
    if made.trainer.fast_dev_run:
        return make_trainer(made.trainer, args, own)
    checkpoints = RunCheckpoints(str(folder), made.save_every_n_steps, signals)
    watching = [EpochLines(), Throughput(), DataFiles(folder), LogPredictions()]
    given = made.trainer.logger
    loggers: list[Any] = [EpochTable(folder / METRICS)]
    if given is not False:
        board = TensorBoardLogger(folder.parent, folder.name, version="", default_hp_metric=False)
        boards = [board] if has_tensorboard(folder) else []
        loggers = [*boards, *loggers, *(given if isinstance(given, list) else [given])]
    return make_trainer(
        made.trainer,
        args,
        [*watching, checkpoints, FitNovelty(), *own, writer],
        default_root_dir=made.trainer.default_root_dir or str(folder),
        logger=[logger for logger in loggers if not isinstance(logger, bool) and logger is not None],
        plugins=[*(made.trainer.plugins or []), AtomicCheckpointIO()],
    )


def _run_folder(settings: Namespace, checkpoint: Path | None) -> tuple[Path, RunFolder | None, Path | None]:
    """Return the run's folder, its owner on the first rank, and the checkpoint to resume from, also where a
    job was started again."""
    if "LOCAL_RANK" in os.environ and RUN_NAME in os.environ:  # launched by the process that owns the run
        end_with_launcher()
        return checkpoint.parent if checkpoint else RUNS / os.environ[RUN_NAME], None, checkpoint
    first = not getattr(rank_zero_only, "rank", 0) and not settings.trainer.fast_dev_run
    if checkpoint is not None:
        check_writable(checkpoint.parent)
        owned = RunFolder.enter(checkpoint.parent, resume=True) if first else None
        return checkpoint.parent, owned, checkpoint
    if first:
        check_writable(RUNS)
    name, owned = settings.run_name or job_name(), None
    if name is not None and (Path(name).name != name or name == ".."):
        raise FlowersError(f"--run_name must be the name of a folder below {RUNS}, not {name!r}.")
    if first:
        now = time.strftime("%Y%m%d-%H%M%S")
        owned = RunFolder.enter(RUNS / name, restarted()) if name else RunFolder.new(RUNS, now)
    folder = owned.path if owned else RUNS / (name or "run")
    os.environ[RUN_NAME] = folder.name
    last = folder / LAST
    if not (restarted() and last.exists()):
        return folder, owned, None
    read_checkpoint(last)
    return folder, owned, last


def _train(made: Run) -> None:
    trainer, checkpoint = made.trainer, made.checkpoint
    made.data.check_ranks(trainer.world_size)
    if checkpoint is not None and (later := epochs_after(checkpoint)):
        log.warning(
            "%s: %s of this run came after it and will be retrained; %s resumes from the last one.",
            checkpoint, plural(later, "epoch"), made.folder / LAST,
        )  # fmt: skip
    best = next((one for one in trainer.checkpoint_callbacks if isinstance(one, RunCheckpoints)), None)
    try:
        trainer.fit(made.model, datamodule=made.data, ckpt_path=checkpoint, weights_only=True)
    except (FlowersError, OSError):
        raise
    except Exception as error:  # Lightning and torch raise many kinds for a checkpoint that was changed
        if checkpoint is None or best is None or not best.restoring or lost_contact(error):
            raise
        raise unusable(checkpoint, error) from error
    if best is None or best.best_epoch < 0:
        return
    trainer.validate(made.model, datamodule=made.data, verbose=False)
    metrics = metrics_of(trainer)
    _log_settings(trainer, made.settings.as_dict(), metrics)
    if trainer.is_global_zero:
        _conclude(made, best.best_epoch, metrics)


def _is_concluded(made: Run) -> bool:
    """Whether `_conclude` has run to its end."""
    final = [FINAL[made.settings.export], CARD] if made.settings.export != "none" else []
    return all((made.folder / name).is_file() for name in [CURVES, *final])


def _conclude(made: Run, best_epoch: int, metrics: dict[str, float]) -> None:
    """Write what a run ends with, on one rank: its curves, its final model, and where everything is."""
    draw_curves(made.folder, best_epoch)
    if made.settings.export != "none":
        data = made.data
        results: dict[str, Any] = {
            "judged": f"{validation_images(data)}; this side chose the checkpoint",
            "photos": len(data.reported_photos),
        }
        results |= {name.partition("_")[2]: value for name, value in metrics.items()}
        final, best = made.folder / FINAL[made.settings.export], made.folder / BEST
        write_final(made.model.cpu(), best, final, data.root, data.placed, NUM_CHECKED, results=results)
    log.info("Best epoch: %d. On the validation side, which chose it:", best_epoch + 1)
    show(lines(metrics))
    shown = "Everything of this run is in %s; 'tensorboard --logdir %s' shows it."
    log.info(shown, made.folder, made.folder.parent)


def _log_settings(trainer: L.Trainer, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Give TensorBoard the run's settings beside its result."""
    chosen = {
        f"{group}.{name}": printable(str(value))
        for group in ("model", "data", "unfreeze", "early_stopping", "average")
        for name, value in settings[group].items()
    }
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(chosen, {f"best/{name}": value for name, value in metrics.items()})

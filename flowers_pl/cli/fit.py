"""`fit`: train in two stages, evaluate the best checkpoint, write the final model."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger

from flowers_pl.cli.checkpoints import check_not_in_config, checkpoint_to_resume, run_to_refit
from flowers_pl.cli.evaluating import PARTLY, is_partly_evaluated, lines, metrics_of
from flowers_pl.cli.fit_options import CALLBACKS, parser
from flowers_pl.cli.options import given
from flowers_pl.cli.refit import check_decisions, check_settings, find_refit, forget_identity, make_refit
from flowers_pl.cli.run_folder import run_folder
from flowers_pl.cli.trainer import choose_precision, make_trainer, naming_option, seed
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import BEST, CARD, CONFIG, CURVES, KEY, LAST, METRICS, SPLIT
from flowers_pl.core.screen import show
from flowers_pl.core.signals import Stopped, StopSignals, lost_contact
from flowers_pl.core.text import plural, printable
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.sampling import check_ranks
from flowers_pl.network.weights import check_weights
from flowers_pl.runs.final_model import NUM_CHECKED, write_final
from flowers_pl.runs.ownership import RunFolder
from flowers_pl.runs.progress import EpochLines
from flowers_pl.runs.results import draw_curves, validation_images
from flowers_pl.runs.settings import RunSettings
from flowers_pl.runs.tables import DataFiles, EpochTable, Throughput
from flowers_pl.runs.tensorboard import LogPredictions, has_tensorboard
from flowers_pl.training.checkpoint_callback import RunCheckpoints
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint, unusable
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.novelty_callback import FitNovelty
from flowers_pl.training.resume import (
    epochs_after,
    finished,
    how_to_resume,
    log_changes,
    read_settings,
    remove_unbegun,
)
from flowers_pl.training.temperature_callback import FitTemperature

log = logging.getLogger(__name__)
FINAL = {"torch": "final.pt2", "onnx": "final.onnx"}


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
    done = made.checkpoint and not made.changed and finished(made.checkpoint) and _is_concluded(made)
    if done and made.trainer.num_nodes == 1:  # another machine may have other files
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


def _make(args: list[str], signals: StopSignals) -> Run:
    """Parse the command line and make what it asks for, refusing at once what could not work in the end."""
    checkpoint, repeats = checkpoint_to_resume(args), run_to_refit(args)
    refit, source = find_refit(repeats, checkpoint), checkpoint or (repeats and repeats / BEST)
    if source is not None:
        read_settings(source.parent / CONFIG)
    options = parser(source and source.parent)
    settings = options.parse(args)
    if repeats is not None:
        forget_identity(settings, repeats, args)
        check_decisions(repeats, options.dump(settings), options.defaults())
    check_not_in_config(settings, ckpt_path=checkpoint, **({} if checkpoint else {"refit": repeats}))
    if source and not (given("--data.root", args) or os.path.isabs(settings.data.root)):
        settings.data.root = read_checkpoint(source)[KEY]["data"]["root"]  # config.yaml of 0.1.0
    if refit is not None:
        check_settings(refit, settings)
    seed(settings)
    choose_precision(settings)
    if checkpoint is None:
        check_weights(settings.model.weights)
    folder, owned, checkpoint = run_folder(settings, checkpoint, repeats)
    try:
        written = options.dump(settings)
        changed = checkpoint is not None and log_changes(folder / CONFIG, written, options.defaults())
        made = options.parser.instantiate(settings)
        if refit is not None:
            make_refit(refit, made, (folder if checkpoint else repeats or folder) / SPLIT)
        if repeats is not None and checkpoint is None:
            log_changes(repeats / CONFIG, written, options.defaults(), "refit")
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
    given, plugins = made.trainer.logger, made.trainer.plugins or []
    loggers: list[Any] = [EpochTable(folder / METRICS)]
    if given is not False:
        board = TensorBoardLogger(folder.parent, folder.name, version="", default_hp_metric=False)
        boards = [board] if has_tensorboard(folder) else []
        loggers = [*boards, *loggers, *(given if isinstance(given, list) else [given])]
    return make_trainer(
        made.trainer,
        args,
        [*watching, checkpoints, FitNovelty(), FitTemperature(), *own, writer],
        default_root_dir=made.trainer.default_root_dir or str(folder),
        logger=[logger for logger in loggers if not isinstance(logger, bool) and logger is not None],
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()],
    )


def _train(made: Run) -> None:
    trainer, checkpoint = made.trainer, made.checkpoint
    check_ranks(made.data.batch_size, trainer.world_size)
    if checkpoint is not None and (later := epochs_after(checkpoint)):
        log.warning(
            "%s: %s of this run came after it and will be retrained; %s resumes from the last one.",
            checkpoint, plural(later, "epoch"), made.folder / LAST,
        )  # fmt: skip
    if checkpoint is not None:
        epoch = read_checkpoint(checkpoint)["epoch"]
        for table in (logger for logger in trainer.loggers if isinstance(logger, EpochTable)):
            table.forget_after(epoch)
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
    if made.model.refit is not None:
        if trainer.is_global_zero:
            _conclude(made, best.best_epoch, {})
        return
    trainer.validate(made.model, datamodule=made.data, verbose=False)
    metrics = metrics_of(trainer)
    whole = not is_partly_evaluated(trainer, made.data)
    _log_settings(trainer, made.settings.as_dict(), metrics)
    if trainer.is_global_zero:
        _conclude(made, best.best_epoch, metrics, whole)


def _is_concluded(made: Run) -> bool:
    """Whether `_conclude` has run to its end since the run was last given settings."""
    exports = made.settings.export != "none"
    written = [made.folder / name for name in [CURVES, *([FINAL[made.settings.export]] if exports else [])]]
    begun = (made.folder / CONFIG).stat().st_mtime_ns
    newer = all(file.is_file() and file.stat().st_mtime_ns >= begun for file in written)
    return newer and (not exports or (made.folder / CARD).is_file())  # a card that was edited is kept


def _conclude(made: Run, best_epoch: int, metrics: dict[str, float], whole: bool = True) -> None:
    """Write what a run ends with, on one rank: its curves, its final model, and where everything is.

    Args:
        made: the run.
        best_epoch: the epoch that was kept.
        metrics: of its validation side; none in a refit, whose card has those of the other run.
        whole: whether they are of all its photos; the card has no others.
    """
    data, stage, refit = made.data, made.model.stage, made.model.refit
    draw_curves(made.folder, best_epoch, stage.chooses)
    if made.settings.export != "none":
        results: dict[str, Any] = {
            "judged": f"{validation_images(data)}; {stage.chosen}",
            "photos": len(data.reported_photos),
        }
        results |= {name.partition("_")[2]: value for name, value in metrics.items()}
        final, best = made.folder / FINAL[made.settings.export], made.folder / BEST
        shown = results if refit is None and whole else None
        write_final(made.model.cpu(), best, final, data.root, data.placed, NUM_CHECKED, results=shown)
    if refit is None:
        log.info("%s:", stage.kept(best_epoch))
        show(lines(metrics))
        if not whole:
            log.warning("%s The card has none of these figures.", PARTLY)
    else:
        log.info(
            "All photos were trained on, so nothing was left to judge this refit on: the figures are those of"
            " the run %s.",
            refit.run,
        )
    everything = "Everything of this run is in %s; 'tensorboard --logdir %s' shows it."
    log.info(everything, made.folder, made.folder.parent)


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

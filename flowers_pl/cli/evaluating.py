"""What `validate`, `test` and `predict` share: a checkpoint whose settings are defaults, data, a Trainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.cli.checkpoints import check_not_in_config, checkpoint_to_use
from flowers_pl.cli.commands import RUN_NAME
from flowers_pl.cli.options import Options
from flowers_pl.cli.trainer import choose_precision, make_trainer, naming_option, seed
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.core.paths import check_writable
from flowers_pl.core.signals import end_with_launcher, lost_contact
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.runs.folder import settings_of
from flowers_pl.runs.ranks import SamePhotos
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

log = logging.getLogger(__name__)
CHECKPOINT = "Checkpoint; the newest best.ckpt below checkpoints/ where none is given."
PARTLY = "Only a part of them was evaluated (--trainer.limit_val_batches)."
NOTHING = "Nothing was evaluated: the --trainer options leave no batch; leave out those that limit batches."


@dataclass
class Evaluation:
    """What a subcommand that evaluates works with.

    Args:
        settings: of the command line.
        folder: where results go.
        checkpoint: what is evaluated; None where an exported model is.
        data: the photos.
        trainer: runs the loops.
        args: the command line, to name the option that the Trainer refuses.
    """

    settings: Namespace
    folder: Path
    checkpoint: Path | None
    data: FlowersDataModule
    trainer: L.Trainer
    args: list[str]

    def load(self) -> FlowerClassifier:
        """Load the model from its checkpoint."""
        assert self.checkpoint is not None
        log.info("Checkpoint: %s", self.checkpoint)
        return FlowerClassifier.load(self.checkpoint)

    def metrics(self, loop: Callable[..., Any], model: FlowerClassifier) -> dict[str, float]:
        """Run `trainer.validate` or `trainer.test` and return what it logged.

        Raises:
            FlowersError: the Trainer's settings leave nothing to evaluate.
        """
        with self._running("start it again"):
            loop(model, datamodule=self.data, verbose=False)
        if not self.trainer.callback_metrics:
            raise FlowersError(NOTHING)
        return metrics_of(self.trainer)

    def predict(self, model: FlowerClassifier, writer: L.Callback) -> None:
        """Run `trainer.predict`; what it predicts goes to a callback, batch by batch."""
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]  # a list, in spite of its annotation
        with self._running("start it again with --resume"):
            self.trainer.predict(model, datamodule=self.data, return_predictions=False)

    @contextmanager
    def _running(self, way_out: str) -> Iterator[None]:
        """Make one sentence of what goes wrong in a loop.

        Args:
            way_out: what to do where another rank has ended.

        Raises:
            FlowersError: the Trainer refuses an option, or another rank has ended.
        """
        try:
            with naming_option(self.args):
                yield
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            raise FlowersError(
                f"Another process of this command has ended, so this one ends too; {way_out}."
            ) from error


def is_partly_evaluated(trainer: L.Trainer, data: FlowersDataModule) -> bool:
    """Return whether the Trainer's last validation left out some of the validation side."""
    return sum(trainer.num_val_batches) < len(data.val_dataloader())


def metrics_of(trainer: L.Trainer) -> dict[str, float]:
    """Return the metrics that a loop has logged."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def lines(metrics: dict[str, float]) -> str:
    """Format metrics for the screen, one a line."""
    return "\n".join(f"  {name.partition('_')[2]:<10} {value:.4f}" for name, value in metrics.items())


def prepare(
    command: str,
    args: list[str],
    add: Callable[[Options], None] = lambda options: None,
    exported: Path | None = None,
    output: Callable[[Namespace, Path], Path | None] = lambda settings, folder: folder,
) -> Evaluation:
    """Parse a command line and make what it asks for.

    Args:
        command: the subcommand.
        args: the command line, without the subcommand.
        add: adds the subcommand's own options.
        exported: the exported model that takes the place of a checkpoint.
        output: the folder that is to be written to, from the settings and the folder of the model; None where
            nothing is written, or `add` has checked it.

    Raises:
        FlowersError: there is a mistake in the command line, or no checkpoint.
    """
    checkpoint = None if exported else checkpoint_to_use(args)
    ours = read_checkpoint(checkpoint)[KEY] if checkpoint else {}
    trained_on = settings_of(checkpoint, ours) if checkpoint else {}
    options = Options(command)
    options.add_config()
    options.add("seed_everything", int, 0, "Seed of what is drawn.")
    add(options)
    options.add_class("data", FlowersDataModule)
    options.parser.link_arguments("seed_everything", "data.seed")
    options.parser.set_defaults({f"data.{name}": value for name, value in trained_on.items()})
    options.add("ckpt_path", str | None, None, CHECKPOINT)
    options.add_trainer({"trainer.devices": 1})
    settings = options.parse(args)
    check_not_in_config(settings, ckpt_path=checkpoint, exported=exported)
    seed(settings)
    choose_precision(settings, ours.get("precision"))
    size = trained_on.get("image_size")
    if size and settings.data.image_size != size:
        raise FlowersError(
            f"--data.image_size: the model of {checkpoint} takes {size} pixels a side, not"
            f" {settings.data.image_size}; leave it out."
        )
    model = exported or checkpoint
    assert model is not None
    folder = output(settings, model.parent)
    if folder is not None and not getattr(rank_zero_only, "rank", 0):  # only the first rank writes
        check_writable(folder, "--out" if folder != model.parent else "")
    made = options.parser.instantiate(settings)
    trainer = make_trainer(made.trainer, args, [SamePhotos()], logger=False, enable_checkpointing=False)
    if "LOCAL_RANK" in os.environ and RUN_NAME in os.environ:  # launched by the first process
        end_with_launcher()
    os.environ[RUN_NAME] = model.parent.name
    return Evaluation(settings, model.parent, checkpoint, made.data, trainer, args)

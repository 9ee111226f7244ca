"""`fit --refit`: a run once more, on its training and validation photos together."""

from __future__ import annotations

import logging
from pathlib import Path

from jsonargparse import Namespace

from flowers_pl.cli.options import given
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import CONFIG, KEY
from flowers_pl.core.text import plural
from flowers_pl.runs.refit import read_refit
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.refit import Refit
from flowers_pl.training.resume import changes, read_settings

log = logging.getLogger(__name__)
DECISIONS = (
    "data.split", "data.split_seed", "data.val_fraction", "data.exclude", "data.review",
    "unfreeze.head_epochs", "unfreeze.top_epochs",
)  # fmt: skip


def find_refit(run: Path | None, checkpoint: Path | None) -> Refit | None:
    """Return what a refit repeats; None where this run is none.

    Args:
        run: the folder of the run to repeat, where one is given.
        checkpoint: what this run resumes from, if anything; that of a refit knows all that it needs.

    Raises:
        FlowersError: the run cannot be repeated.
    """
    if checkpoint is not None:
        return Refit.from_state(read_checkpoint(checkpoint)[KEY].get("refit_of"))
    return None if run is None else read_refit(run)


def check_settings(refit: Refit, settings: Namespace) -> None:
    """Refuse a temperature that a refit can neither copy nor fit.

    Raises:
        FlowersError: the run has no temperature, or one for logits of another kind.
    """
    if not settings.model.calibrate:
        return
    if refit.temperature is None or refit.flip_test != settings.model.flip_test:
        raise FlowersError(
            f"--model.calibrate: a refit copies the temperature of its run, and {refit.run!r} had none for"
            f" --model.flip_test {str(settings.model.flip_test).lower()}; resume that run with these two"
            " settings first, which trains nothing, and refit it, or leave them out."
        )


def forget_identity(settings: Namespace, run: Path, args: list[str]) -> None:
    """Drop a run's own name, checkpoint and limits from its settings, but not those given for the refit.

    The epochs that the run kept say what its limits came to; a refit has more photos and steps in each.

    Args:
        settings: of the refit; changed in place.
        run: the folder of the run that it repeats.
        args: the command line.
    """
    own = read_settings(run / CONFIG)
    if settings.ckpt_path == own.get("ckpt_path"):
        settings.ckpt_path = None
    if given("--run_name", args) is None and settings.run_name == own.get("run_name"):
        settings.run_name = None
    limits = own.get("trainer", {})
    for name, none in (("max_time", None), ("max_steps", -1)):
        if given(f"--trainer.{name}", args) is None and settings.trainer[name] == limits.get(name):
            settings.trainer[name] = none


def check_decisions(run: Path, settings: str, defaults: str) -> None:
    """Refuse to change what a refit takes from its run.

    Args:
        run: its folder.
        settings: those of the refit, in YAML.
        defaults: see `changes`.

    Raises:
        FlowersError: one of them differs.
    """
    for name, old, new in changes(run / CONFIG, settings, defaults):
        if name in DECISIONS:
            raise FlowersError(
                f"--{name}: a refit trains on the photos of its run, for as many epochs as that kept, so this"
                f" stays {old} and cannot be {new}; leave it out, or train a new run with it and refit that."
            )


def make_refit(refit: Refit, made: Namespace, split: Path) -> None:
    """Turn the model, the photos and the stages of `fit` into those of a refit.

    Args:
        refit: what is repeated.
        made: the instances.
        split: the list of the photos.
    """
    made.model.refit = refit
    made.data.all_of = split
    if not refit.top_epochs:
        made.unfreeze.epochs[2] = 0
    log.info(
        "A refit of the run %s on all its photos: %s of stage 1, %s of stage 2.",
        refit.run, plural(refit.head_epochs, "epoch"), plural(refit.top_epochs, "epoch"),
    )  # fmt: skip

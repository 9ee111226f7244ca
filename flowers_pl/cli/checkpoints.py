"""Which checkpoint or exported model a command line is about: its settings become defaults before parsing."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from flowers_pl.cli.options import asks_for_help, given
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import RUNS
from flowers_pl.training.checkpoint_files import newest_best, read_checkpoint


def checkpoint_to_resume(args: list[str]) -> Path | None:
    """Return the checkpoint that `fit` is to resume from, if it is given one.

    Raises:
        FlowersError: there is no such checkpoint.
    """
    path = given("--ckpt_path", args)
    if path is None or asks_for_help(args):
        return None
    if not Path(path).exists():
        raise FlowersError(
            f"--ckpt_path: there is no checkpoint {path!r}; if nothing was saved yet, start the run again"
            " without --ckpt_path."
        )
    read_checkpoint(path)
    return Path(path)


def run_to_refit(args: list[str]) -> Path | None:
    """Return the folder of the run that `fit` is to repeat on all photos, if it is given one.

    Raises:
        FlowersError: a checkpoint is given too.
    """
    path = given("--refit", args)
    if path is None or asks_for_help(args):
        return None
    if given("--ckpt_path", args) is not None:
        raise FlowersError("--refit begins a run, and --ckpt_path goes on with one; give one of them.")
    return Path(path)


def checkpoint_to_use(args: list[str]) -> Path | None:
    """Return the checkpoint that a command line names, or the newest best.ckpt.

    Raises:
        FlowersError: there is none.
    """
    if asks_for_help(args):
        return None
    path = given("--ckpt_path", args)
    if path is None:
        return newest_best(RUNS)
    read_checkpoint(path)
    return Path(path)


def exported_model(args: list[str]) -> Path | None:
    """Return the exported model that `predict` is to use instead of a checkpoint, if it is given one.

    Raises:
        FlowersError: a checkpoint is given too.
    """
    path = given("--exported", args)
    if path is None:
        return None
    if given("--ckpt_path", args) is not None:
        raise FlowersError("--exported takes the place of --ckpt_path; give one of them.")
    return Path(path)


def check_not_in_config(config: Namespace, **found: Path | None) -> None:
    """Refuse paths that come from a config file: their settings were needed before it was read.

    Args:
        config: the parsed command line.
        found: what the command line itself gives, by option.

    Raises:
        FlowersError: names the option.
    """
    for name, path in found.items():
        value = config.get(name)
        if value is not None and Path(value) != path:
            raise FlowersError(f"--{name} must be given on the command line, not in a config file.")

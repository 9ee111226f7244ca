"""Lightning's Trainer as each subcommand needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.system import best_precision
from flowers_pl.runs.progress import bars_for

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")


def seed(settings: Namespace) -> None:
    """Seed what still draws from global generators; training itself does not.

    Raises:
        FlowersError: the seed is out of range.
    """
    if not 0 <= settings.seed_everything < 2**32:
        raise FlowersError(
            f"--seed_everything must be from 0 to {2**32 - 1}, not {settings.seed_everything}."
        )
    L.seed_everything(settings.seed_everything, workers=True)


def choose_precision(settings: Namespace, trained_in: str | None = None) -> None:
    """Set `trainer.precision` where it is not given: what was trained in float32 is evaluated in float32.

    Raises:
        FlowersError: it is one in which even sums of losses are rounded to 16 bits.
    """
    if settings.trainer.precision in ("16-true", "bf16-true"):
        mixed = settings.trainer.precision.replace("true", "mixed")
        raise FlowersError(
            f"--trainer.precision {settings.trainer.precision} would round the figures of a run, which choose"
            f" its best epoch; use {mixed}, which computes as fast."
        )
    if settings.trainer.precision is None:
        exact = trained_in == "32-true"
        settings.trainer.precision = trained_in if exact else best_precision(settings.trainer.accelerator)


def make_trainer(
    given: Namespace, args: Sequence[str], callbacks: Sequence[L.Callback] = (), **settings: Any
) -> L.Trainer:
    """Make a Trainer.

    Args:
        given: its settings, instantiated.
        args: the command line, to name the option that the Trainer refuses.
        callbacks: those of this program, which come after the user's.
        settings: those that the subcommand decides.

    Raises:
        FlowersError: the settings do not go together, or want a package that is not installed.
    """
    own = given.callbacks or []
    own = own if isinstance(own, list) else [own]
    bar, bars = bars_for(given.enable_progress_bar, own)
    settings |= {"enable_progress_bar": bar, "callbacks": [*own, *bars, *callbacks]}
    settings["sync_batchnorm"] = False  # batch norm keeps its statistics, so there is nothing to share
    if given.accumulate_grad_batches < 1:
        raise FlowersError(
            f"--trainer.accumulate_grad_batches must be at least 1, not {given.accumulate_grad_batches}."
        )
    if isinstance(given.strategy, str) and given.strategy not in STRATEGIES:
        raise FlowersError(
            f"--trainer.strategy must be one of {', '.join(STRATEGIES)}, not {given.strategy}, which cannot"
            " begin stage 2."
        )
    try:
        with naming_option(args):
            return L.Trainer(**(dict(given.items()) | settings))
    except ValueError as error:
        raise _refused(args, error) from error
    except ModuleNotFoundError as error:  # of an accelerator, a precision or a logger
        raise FlowersError(
            f"{_option(args, '')}: it needs a package that is not installed ({error.name or error})."
        ) from error


@contextmanager
def naming_option(args: Sequence[str]) -> Iterator[None]:
    """Name the option of a command line that the Trainer refuses, now or when it runs.

    Raises:
        FlowersError: the settings do not go together.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise _refused(args, error) from error


def _refused(args: Sequence[str], error: Exception) -> FlowersError:
    """Make the error about an option that the Trainer refuses."""
    said = " ".join(str(error).split())
    return FlowersError(f"{_option(args, said)}: {said.rstrip('.')}. Change it or leave it out.")


def _option(args: Sequence[str], said: str) -> str:
    """Name the Trainer's option that is at fault: the one given, or those given that an error mentions."""
    options = [arg.partition("=")[0] for arg in args if arg.startswith("--trainer.")]
    mentioned = [one for one in options if one.removeprefix("--trainer.") in said]
    return ", ".join(dict.fromkeys(mentioned or options)) or "--trainer"

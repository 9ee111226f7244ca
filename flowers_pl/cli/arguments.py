"""What a command line says about the model, read before it is parsed: the model's settings are defaults."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import RUNS
from flowers_pl.training.checkpoint_files import newest_best, read_checkpoint

JUDGING = ("validate", "test", "predict")


def checkpoint_for(command: str, args: list[str]) -> Path | None:
    """The checkpoint that a command line is about: the one it names, or for all but `fit` the newest."""
    given = _given("--ckpt_path", args)
    if given in (None, "null") and command in JUDGING:
        return newest_best(RUNS)
    if given in (None, "null"):
        return None
    if command == "fit" and not Path(given).exists():
        raise FlowersError(
            f"--ckpt_path: there is no checkpoint {given!r}; where nothing was saved yet, start the run anew"
            " without --ckpt_path."
        )
    read_checkpoint(given)
    return Path(given)


def exported_for(command: str, args: list[str]) -> Path | None:
    """The exported model that `predict` takes in place of a checkpoint, if it is told to."""
    given = _given("--exported", args)
    if given in (None, "null") or command != "predict":
        return None
    if _given("--ckpt_path", args) not in (None, "null"):
        raise FlowersError("--exported takes the place of --ckpt_path; give one of them.")
    return Path(given)


def _given(option: str, args: list[str]) -> str | None:
    """What a command line gives for an option; the last one counts, as for the parser."""
    values = [
        after if arg == option else arg.partition("=")[2]
        for arg, after in pairwise([*args, ""])
        if arg == option or arg.startswith(f"{option}=")
    ]
    return values[-1] or None if values else None

"""What a command line says about the model, read before it is parsed: the model's settings are defaults."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import NoneType

import yaml

from flowers_pl.checkpointing import newest_best, read_checkpoint
from flowers_pl.errors import FlowersError
from flowers_pl.runs import RUNS

JUDGING = ("validate", "test", "predict")


def checkpoint_for(command: str, args: list[str]) -> Path | None:
    """The checkpoint that a command line is about: the one it names, or for all but `fit` the newest."""
    given = _given("--ckpt_path", args)
    if given in (None, "null") and command in JUDGING:
        return newest_best(RUNS)
    if given in (None, "null"):
        return None
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


def check_configs(args: list[str]) -> None:
    """Refuse a --config that is no YAML: the parser's own message does not name the file.

    Raises:
        FlowersError: one is not there, or not a file of settings.
    """
    for name in (*_all_given("--config", args), *_all_given("-c", args)):
        try:
            settings = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise FlowersError(
                f"--config: {name!r} cannot be read ({error.strerror}); give the path of a YAML file."
            ) from error
        except (yaml.YAMLError, UnicodeError) as error:
            what = " ".join(str(error).replace('in "<unicode string>", ', "").split())
            raise FlowersError(f"--config: {name!r} is no YAML ({what}); mend it.") from error
        if not isinstance(settings, dict | NoneType):
            raise FlowersError(
                f"--config: {name!r} holds no settings; configs/recipe.yaml shows how they look."
            )


def _given(option: str, args: list[str]) -> str | None:
    """What a command line gives for an option; the last one counts, as for the parser."""
    values = _all_given(option, args)
    return values[-1] or None if values else None


def _all_given(option: str, args: list[str]) -> list[str]:
    return [
        after if arg == option else arg.partition("=")[2]
        for arg, after in pairwise([*args, ""])
        if arg == option or arg.startswith(f"{option}=")
    ]

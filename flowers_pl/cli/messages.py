"""What the program says on the screen, and of what its libraries say."""

from __future__ import annotations

import difflib
import logging
import os
import re
import warnings
from collections.abc import Iterable
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.strategies.launchers import subprocess_script as launcher
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.core.errors import FlowersError
from flowers_pl.runs.progress import AboveBars

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
}


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one sentence, without a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        said, command = _shortened(message), self.prog.replace(" [options]", "")
        if foreign := re.match(r"Subcommand '(\w+)' does not accept option '([^']+)'", said):
            known = [*self._subcommands_action.choices[foreign[1]].get_defaults().keys()]  # type: ignore[union-attr]
            said = f"--config: {foreign[2]} is no setting of {foreign[1]}{_meant(foreign[2], known)}"
            command = f"{command} {foreign[1]}"
        elif unknown := re.match(r"unrecognized arguments: (-[^\s=]*)", said):
            said = f"{unknown[1]} is no option{_meant(unknown[1], self._option_string_actions)}"
        elif re.match(r"Option '[^']+' is not accepted before subcommand", said):
            said = "--config: give it after the subcommand, as in 'fit --config FILE'"
        elif re.match(r'expected "subcommand" to be one of|argument subcommand: invalid choice', said):
            given = re.search(r"invalid choice: '([^']*)'", said)
            known = [*self._subcommands_action.choices] if self._subcommands_action else []
            said = f"{given[1]!r} is no subcommand{_meant(given[1], known)}" if given else "give a subcommand"
            said += f": one of {', '.join(known)}"
        raise FlowersError(f"{said} (see '{command} --help')") from ex

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """A config file's settings; what jsonargparse (4.53) says of a faulty one does not name the file.

        Raises:
            FlowersError: it holds no settings, or a wrong one.
        """
        try:
            return super().parse_path(path, *args, **kwargs)
        except FlowersError as error:
            file, fault = f"--config: {str(path)!r}", " ".join(str(error.__cause__).split())
            if fault.startswith("Problems parsing config: "):
                what = fault.partition(": ")[2].replace('in "<unicode string>", ', "")
                raise FlowersError(f"{file} is no YAML ({what}); mend it.") from error
            if fault.startswith("Unexpected config:"):
                raise FlowersError(
                    f"{file} holds no settings; configs/recipe.yaml shows how they look."
                ) from error
            raise FlowersError(f"{file}: {error}") from error


def _meant(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, known, 1, cutoff=0.75)
    return f"; do you mean {near[0]}?" if near else ""


def _shortened(message: str) -> str:
    """One line that names the option as it is given, and says in words what was expected."""
    line = re.sub(r'Parser key "([^"]+)":', r"--\1:", " ".join(message.split()))
    union = re.fullmatch(
        r"(.*?)Does not validate against .*? Errors: (.*) Given value type: .*? Given value: (.*)", line
    )
    if union is not None:
        key, errors, value = union.groups()
        wanted = re.findall(r"- Expected (.*?)(?= - |$)", errors)
    elif single := re.fullmatch(r"(.*?)Expected (.*)\. Got value: (.*)", line):
        key, wanted, value = single[1], [single[2]], single[3]
    else:
        return line
    words = dict.fromkeys(word for kind in wanted for word in _in_words(kind))
    return f"{key.rstrip(' :')} must be {' or '.join(words)}, not {value}"


def _in_words(kind: str) -> list[str]:
    """A type as its user knows it: "a <class 'int'>" is a whole number."""
    if choices := re.fullmatch(r"an? typing\.Literal\[(.*)\]", kind):
        return choices[1].replace("'", "").split(", ")
    named = re.fullmatch(r"an? <class '(\w+)'>", kind)
    return [TYPES.get(named[1], kind) if named else kind]


def quieten() -> None:
    """Say what this program says, and of what Lightning says only what its user can act on."""
    logging.basicConfig(format="%(message)s", handlers=[AboveBars()])
    first = getattr(rank_zero_only, "rank", 0) == 0
    logging.getLogger("flowers_pl").setLevel(logging.INFO if first else logging.ERROR)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(launcher.__name__).setLevel(logging.INFO)  # tells that a process it launched has died
    for message in (
        r".*LightningCLI's args parameter is intended.*",
        r".*does not have many workers.*",
        r".*isinstance\(treespec, LeafSpec\).* is deprecated.*",
        r".*module\(s\) in eval mode at the start of training.*",
        r".*It is recommended to use .*sync_dist=True.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*is smaller than the logging interval.*",
        r".*ended before the epoch ended and your dataloader is not resumable.*",
        r"The ``compute`` method of metric .* was called before the ``update`` method.*",
    ):
        warnings.filterwarnings("ignore", message)

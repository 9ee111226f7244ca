"""What the program says on the screen, and of what its libraries say."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.strategies.launchers import subprocess_script as launcher
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.errors import FlowersError


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one sentence, without a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        raise FlowersError(f"{_shortened(message)} (see 'python -m flowers_pl --help')") from ex

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


def _shortened(message: str) -> str:
    """One line that names the option as it is given, and of a value that is of none of several types says no
    more than what was expected."""
    line = re.sub(r'Parser key "([^"]+)":', r"--\1:", " ".join(message.split()))
    union = re.fullmatch(
        r"(.*?)Does not validate against .*? Errors: (.*) Given value type: .*? Given value: (.*)", line
    )
    if union is None:
        return line
    key, errors, value = union.groups()
    wanted = " or ".join(re.findall(r"- Expected (.*?)(?= - |$)", errors))
    return f"{key}Expected {wanted}. Got value: {value}"


def quieten() -> None:
    """Say what this program says, and of what Lightning says only what its user can act on."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
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

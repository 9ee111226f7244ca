"""The command line: which subcommand runs, and what its errors become."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import flowers_pl
from flowers_pl.cli.commands import RUN_NAME, SUMMARIES
from flowers_pl.cli.mistakes import nearest
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import FULL
from flowers_pl.core.screen import prepare_streams, show
from flowers_pl.core.text import printable

if TYPE_CHECKING:
    from flowers_pl.core.signals import StopSignals

log = logging.getLogger(__name__)
HELP = f"""usage: python -m flowers_pl {{{",".join(SUMMARIES)}}} [options]
       python -m flowers_pl --version

Transfer learning with MobileNetV2 on photos of flowers.

subcommands (add --help to one of them for its options):
""" + "\n".join(f"  {name:<10}{summary}" for name, summary in SUMMARIES.items())


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: without the program's name; None for those of this process.

    Returns:
        The exit code: 0; 1 after a mistake that the user can fix or without room on the disk, either of which
        is stated in one sentence; 143 after SIGTERM; 130 after Ctrl-C.

    >>> main(["export", "--format", "coreml"])
    1
    """
    prepare_streams()
    args = sys.argv[1:] if args is None else list(args)
    if args[:1] in (["-h"], ["--help"]):
        show(HELP)
        sys.exit(0)
    if args[:1] == ["--version"]:
        show(flowers_pl.__version__)
        sys.exit(0)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it can do without a folder for its cache
    from flowers_pl.cli.messages import quieten  # takes seconds, because of torch and Lightning
    from flowers_pl.core.signals import Stopped, StopSignals
    from flowers_pl.core.system import limit_threads

    quieten()
    limit_threads()
    launched = RUN_NAME in os.environ
    try:
        with StopSignals() as signals:
            _run(args, signals)
    except FlowersError as error:
        show(f"flowers_pl: {printable(str(error))}", sys.stderr)
        return 1
    except Stopped as stop:
        log.info("flowers_pl: %s", stop)
        return int(stop.code or 0)
    except BrokenPipeError:  # written by a library; the reader has gone, and the work is not at fault
        return 0
    except OSError as error:
        if error.errno in FULL:
            show(f"flowers_pl: {error.strerror}; make room and start again.", sys.stderr)
        elif error.filename is not None:
            show(
                f"flowers_pl: {str(error.filename)!r}: {error.strerror}; fix this and start again.",
                sys.stderr,
            )
        else:
            raise
        return 1
    finally:
        if not launched:  # or what this process starts later would take it for its own
            os.environ.pop(RUN_NAME, None)
    return 0


def _run(args: list[str], signals: StopSignals) -> None:
    """Run the subcommand that a command line begins with."""
    command = args[0] if args else ""
    if command not in SUMMARIES:
        raise FlowersError(f"{_no_subcommand(command)} (see 'python -m flowers_pl --help')")
    module = import_module(f"flowers_pl.cli.{command}")  # libraries take seconds, so only what is needed
    if command == "fit":
        module.run(args[1:], signals)
    else:
        module.run(args[1:])


def _no_subcommand(command: str) -> str:
    """Say what is wrong with a command line that does not begin with a subcommand."""
    names = ", ".join(SUMMARIES)
    if command.startswith("-"):
        option = command.partition("=")[0]
        return f"{option}: give it after the subcommand, as in 'fit {option} …'"
    if not command:
        return f"give a subcommand: one of {names}"
    return f"{command!r} is no subcommand{nearest(command, SUMMARIES)}: one of {names}"

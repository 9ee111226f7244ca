"""What is written to the screen, also where that is a closed pipe or cannot show every letter."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


def prepare_streams() -> None:
    """Let standard output and error escape what their encoding lacks, instead of raising an error.

    Closed ones lead nowhere from then on: the next file that is opened would get the descriptor of a closed
    one, and what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest descriptor that is free: this one
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a text; where the reader of a pipe has gone, print nothing from then on.

    Args:
        text: one or more lines.
        stream: standard output where none is given.
    """
    stream = stream or sys.stdout
    if stream is None:  # Python has none where the program was started with a closed descriptor
        return
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:  # a stream that could not be prepared
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (BrokenPipeError, ValueError):  # a closed file raises ValueError
        abandon(stream)


def abandon(stream: TextIO) -> None:
    """Send what else is written to a stream nowhere: what is buffered would raise again at the end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass


def flush_streams() -> None:
    """Write what is buffered, before Python does, which would report a closed pipe."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (BrokenPipeError, ValueError):
            abandon(stream)

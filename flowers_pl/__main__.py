"""`python -m flowers_pl`."""

from __future__ import annotations

import sys

from flowers_pl.cli import main
from flowers_pl.stopping import end_rank


def run() -> None:
    """Run the command line, and end the program with its exit code."""
    code = main()
    end_rank(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

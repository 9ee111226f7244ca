"""`python -m flowers_pl`."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line, and end the program with its exit code."""
    try:
        from flowers_pl.cli.app import main  # takes seconds, in which a user may change his mind
        from flowers_pl.core.signals import end_rank
    except KeyboardInterrupt:
        sys.exit(130)
    code = main()
    end_rank(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

"""`python -m flowers_pl`."""

from __future__ import annotations

import sys

from flowers_pl.core.screen import flush_streams


def run() -> None:
    """Run the command line, and end the program with its exit code."""
    try:
        from flowers_pl.cli.app import main

        try:
            code = main()
        finally:
            flush_streams()
        from flowers_pl.core.signals import end_rank
    except KeyboardInterrupt:  # while libraries are imported, which takes seconds
        sys.exit(130)
    end_rank(code)
    sys.exit(code)


if __name__ == "__main__":
    run()

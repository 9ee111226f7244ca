"""`python -m flowers_pl`."""

from __future__ import annotations

import os
import sys

from flowers_pl.core.screen import flush_streams, prepare_streams


def run() -> None:
    """Run the command line, and end the program with its exit code."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # In a locale without UTF-8 the same file has other names than elsewhere: start again with UTF-8.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
    prepare_streams()
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

"""`python -m flowers_pl`."""

import sys

from flowers_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Paths as users give them: with `~`, relative to the working folder, perhaps not to be written to."""

from __future__ import annotations

import os
from pathlib import Path

from flowers_pl.core.errors import FlowersError


def expand_home(path: str) -> str:
    """Expand `~` at the beginning of a path.

    Raises:
        FlowersError: there is no such user, or no home.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise FlowersError(f"{path!r}: {error}; write the path without '~'.") from error


def expanded(path: str) -> str:
    """Expand `~` and make a path absolute, without following links.

    Raises:
        FlowersError: there is no such user, or no home.
    """
    return os.path.abspath(expand_home(path))


def seen_from_here(path: Path) -> str:
    """Return a path relative to the working folder where it is below that, else as it is."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def check_writable(folder: str | os.PathLike[str], option: str = "") -> None:
    """Refuse at once a folder, existing or not, that nothing can be written to in the end.

    Args:
        folder: where files will go.
        option: the option that named it, if any, for the message.

    Raises:
        FlowersError: there is no permission, or a file is in the way.
    """
    wanted = Path(folder).absolute()
    nearest = next(one for one in (wanted, *wanted.parents) if os.path.exists(one))
    prefix = f"{option}: " if option else ""
    if not nearest.is_dir():
        raise FlowersError(
            f"{prefix}{str(folder)!r} cannot be written to, because {str(nearest)!r} is a file; remove it or"
            " choose another folder."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise FlowersError(
            f"{prefix}{str(folder)!r} cannot be written to: no permission for {str(nearest)!r}; fix its"
            " permissions or choose another folder."
        )

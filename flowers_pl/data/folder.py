"""A folder of class folders -> the list of its photos."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import printable

log = logging.getLogger(__name__)
NAMED = 20  # unreadable files that are named on screen
UNREADABLE, TWO_CLASSES, EXCLUDED = "unreadable", "under two classes", "excluded"
LAYOUT = "give a folder that holds one folder of photos for each class"


class Photo(NamedTuple):
    """A photo's identity and its class.

    Args:
        path: relative to the root, with slashes on every system.
        label: name of the class folder.
    """

    path: str
    label: str


class LeftOut(NamedTuple):
    """A photo that takes no part, and why.

    Args:
        path: see `Photo`.
        reason: for people.
        kind: for programs: `UNREADABLE`, `TWO_CLASSES` or `EXCLUDED`; empty in lists that do not say.
    """

    path: str
    reason: str
    kind: str = ""


def files_below(root: Path) -> Iterator[str]:
    """Yield the paths of all files below `root`, relative, with slashes; skip hidden files and folders.

    Folders that cannot be opened, and links to folders, which are not followed because they may form a
    circle, are yielded too: `decoding.read_photo` says what is wrong, so that nothing is lost unnamed.
    """
    closed: list[str] = []
    for folder, folders, files in os.walk(root, onerror=lambda error: closed.append(str(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*files, *links]:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()
    yield from (Path(folder).relative_to(root).as_posix() for folder in closed)


def class_folders(root: str | os.PathLike[str], option: str = "--data.root") -> list[str]:
    """Return the names of the folders directly below `root`, sorted, without hidden ones.

    Raises:
        FlowersError: `root` is no folder or cannot be read, or has no class folder.
    """
    if not os.path.isdir(root):
        fault = f"{str(root)!r} is no folder" if Path(root).exists() else f"there is no folder {str(root)!r}"
        raise FlowersError(f"{option}: {fault}; {LAYOUT}.")
    try:
        classes = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
        )
    except PermissionError as error:
        raise FlowersError(
            f"{option}: there is no permission to read {str(root)!r}; fix its permissions or give another"
            " folder."
        ) from error
    if not classes:
        raise FlowersError(f"{option}: {str(root)!r} has no class folders; {LAYOUT}.")
    return classes


def list_photos(root: str | os.PathLike[str], option: str = "--data.root") -> list[Photo]:
    """List all files in the class folders of `root`, sorted by path, whether they can be read or not.

    A class is a folder directly below `root`. Files directly in `root`, and hidden ones anywhere, are
    skipped.

    Args:
        root: the folder of class folders.
        option: that named the folder, for the messages.

    Raises:
        FlowersError: `root` is no folder or cannot be read, has no class folder, or one of them is empty,
            leads back above itself, or has a name that cannot be printed.
    """
    root = Path(root)
    classes = class_folders(root, option)
    _check_names(root, classes, option)
    photos = [Photo(f"{label}/{path}", label) for label in classes for path in files_below(root / label)]
    if empty := sorted(set(classes) - {photo.label for photo in photos}):
        raise FlowersError(
            f"{option}: class folder {str(root / empty[0])!r} is empty; put photos there or remove it."
        )
    return sorted(photos)


def _check_names(root: Path, classes: Iterable[str], option: str) -> None:
    """Raise where a class folder has a name that cannot be printed, or leads back above itself."""
    real = Path(os.path.realpath(root))
    for name in classes:
        if not name.isprintable():
            raise FlowersError(f"{option}: the name of class folder {name!r} cannot be printed; rename it.")
        if Path(os.path.realpath(root / name)) in (real, *real.parents):
            raise FlowersError(
                f"{option}: class folder {str(root / name)!r} is a link that leads back above itself; remove"
                " it."
            )


def check_classes(
    photos: Iterable[Photo], listed: Iterable[Photo], root: str | os.PathLike[str]
) -> list[str]:
    """Return the class names, sorted, and check that each has enough photos.

    Args:
        photos: those that take part.
        listed: all that `list_photos` found.
        root: the folder, for the messages.

    Raises:
        FlowersError: there is one class only, or a class has fewer than the two photos that a split needs.
    """
    counts = Counter(photo.label for photo in photos)
    classes = sorted({photo.label for photo in listed})
    if len(classes) < 2:
        raise FlowersError(
            f"--data.root: {str(root)!r} has one class only, {classes[0]!r}; at least two are needed."
        )
    for label in classes:
        if counts[label] < 2:
            raise FlowersError(
                f"--data.root: class {label!r} in {str(root)!r} has {counts[label]} usable photos; put at"
                " least two different ones there (one to train on, one to validate on) or remove it."
            )
    return classes


def report_left_out(left_out: Sequence[LeftOut], root: str | os.PathLike[str], allowed: bool) -> None:
    """Log the files that cannot be read.

    Args:
        left_out: the files, each with the reason.
        root: the folder, for the messages.
        allowed: whether a run continues without them.

    Raises:
        FlowersError: there are such files, and it does not.
    """
    if left_out and not allowed:
        path, reason, _ = left_out[0]
        raise FlowersError(
            f"--data.unreadable error: {len(left_out)} files below {str(root)!r} cannot be read, the first is"
            f" {path!r} ({reason}); repair or remove them, or name them in a list for --data.exclude, or give"
            " --data.unreadable skip."
        )
    for path, reason, _ in left_out[:NAMED]:
        log.warning("Left out: %s (%s).", printable(path), reason)
    if len(left_out) > NAMED:
        log.warning("… and %d more, which the run's left_out.csv names.", len(left_out) - NAMED)


def list_pictures(
    where: str | os.PathLike[str], option: str = "--data.predict_root"
) -> tuple[Path, list[str]]:
    """List the photos to predict: one file, or all files of a folder, nested or flat.

    Args:
        where: the file or the folder.
        option: that named it, for the messages.

    Returns:
        The folder, and the files' paths relative to it, sorted.

    Raises:
        FlowersError: there is nothing at `where`, or nothing in it.
    """
    where = Path(where)
    if where.is_file():
        return where.parent, [where.name]
    if not where.is_dir():
        raise FlowersError(f"{option}: there is no photo or folder {str(where)!r}; give the path of one.")
    paths = sorted(files_below(where))
    if not paths:
        raise FlowersError(f"{option}: folder {str(where)!r} is empty; give a photo or a folder of photos.")
    return where, paths

"""A folder of class folders -> the list of its photos."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from flowers_pl.errors import FlowersError

LAYOUT = "give --data.root a folder that holds one folder of photos for each class"


class Photo(NamedTuple):
    """A photo's identity and its class.

    Args:
        path: relative to the root, with slashes on every system.
        label: name of the class folder.
    """

    path: str
    label: str


class LeftOut(NamedTuple):
    """A photo that takes no part, and why."""

    path: str
    reason: str


def files_below(root: Path) -> Iterator[str]:
    """Paths of all files below `root`, relative, with slashes; hidden files and folders are passed over."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def class_folders(root: str | os.PathLike[str], option: str = "--data.root") -> list[str]:
    """Names of the folders directly below `root`, hidden ones passed over, sorted.

    Raises:
        FlowersError: `root` is no folder, or has no class folder.
    """
    if not os.path.isdir(root):
        raise FlowersError(f"{option}: there is no folder {str(root)!r}; {LAYOUT}.")
    classes = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise FlowersError(f"{option}: {str(root)!r} has no class folders; {LAYOUT}.")
    return classes


def list_photos(root: str | os.PathLike[str], option: str = "--data.root") -> list[Photo]:
    """All files in the class folders of `root`, sorted by path, whether they can be read or not.

    A class is a folder directly below `root`. Files directly in `root`, and hidden ones anywhere, are passed
    over.

    Args:
        root: the folder of class folders.
        option: what the folder was given with, for the messages.

    Raises:
        FlowersError: `root` is no folder, has no class folder, or one of them is empty.
    """
    root = Path(root)
    classes = class_folders(root, option)
    photos = [Photo(f"{label}/{path}", label) for label in classes for path in files_below(root / label)]
    if empty := sorted(set(classes) - {photo.label for photo in photos}):
        raise FlowersError(
            f"{option}: class folder {str(root / empty[0])!r} is empty; put photos there or remove it."
        )
    return sorted(photos)


def check_classes(
    photos: Iterable[Photo], listed: Iterable[Photo], root: str | os.PathLike[str]
) -> list[str]:
    """The class names, sorted, once it is known which photos take part.

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
                " least two"
                " different ones there (one to train on, one to validate with) or remove the folder."
            )
    return classes


def list_pictures(where: str | os.PathLike[str]) -> tuple[Path, list[str]]:
    """The photos to predict: one file, or all files of a folder, nested or flat.

    Returns:
        The folder, and the files' paths relative to it, sorted.

    Raises:
        FlowersError: there is nothing at `where`, or nothing in it.
    """
    where = Path(where)
    if where.is_file():
        return where.parent, [where.name]
    if not where.is_dir():
        raise FlowersError(
            f"--data.predict_root: there is no photo or folder {str(where)!r}; give the path of one."
        )
    paths = sorted(files_below(where))
    if not paths:
        raise FlowersError(
            f"--data.predict_root: folder {str(where)!r} is empty; give a photo or a folder of photos."
        )
    return where, paths


def shown(name: str) -> str:
    """A file's name as it may be shown: control characters, marks that turn the writing direction and bytes
    that are no Unicode become escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name
    )


def write_csv(file: str | os.PathLike[str], header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table; names that are no Unicode keep their bytes (`surrogateescape`)."""
    table = [[*row] for row in rows]
    returns = any("\r" in str(cell) for row in table for cell in row)  # quoted from Python 3.13 on only
    with open(file, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(
            stream, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        )
        writer.writerow(header)
        writer.writerows(table)

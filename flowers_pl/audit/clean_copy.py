"""A clean copy of a folder: photos that a review leaves out are not there, others are under another class."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.locks import take
from flowers_pl.core.text import nfc, plural, printable
from flowers_pl.data.folder import Photo, list_class_files, split_folders
from flowers_pl.data.reviews import EXCLUDE, Review, open_review

log = logging.getLogger(__name__)


def copy_clean(root: Path, review: str, to: Path) -> None:
    """Copy the class folders of a root as a review says; `root` stays as it is.

    Files that take no part in training because they cannot be read as photos are copied too. The copy is
    filled under a hidden name beside `to` and gets its own at the end: a kill leaves no half of it there, and
    the next call removes what it left under the hidden name.

    Args:
        root: the folder of class folders.
        review: file that `reviews.read_review` reads.
        to: the copy: a folder that is empty or does not exist, and is not inside `root`.

    Raises:
        FlowersError: `to` is not such a folder, or cannot be written; the review cannot be read, or has a
            label that can be no folder's name.
    """
    to = Path(os.path.abspath(to)).resolve()
    _check_target(root, to)
    _, listed = list_class_files(root)
    decided = open_review(review, root, listed, option="--apply", new_classes=True)
    targets = plan_copy(listed, decided, split_folders(root))
    try:
        with _unfinished(to) as folder:
            num_copied = sum(_copy(root / source, folder / target) for source, target in targets.items())
            if hasattr(os, "sync"):
                os.sync()  # what gets its name next is on the disk
            os.rename(folder, to)
    except OSError as error:
        name = f"{error.filename!r}: " if error.filename else ""
        raise FlowersError(
            f"--to: {str(to)!r} cannot be written ({name}{reason_of(error)}); nothing was left there; make"
            " room, or choose another folder."
        ) from error
    _report(listed, decided, targets, num_copied, to)


def _check_target(root: Path, to: Path) -> None:
    real = root.resolve()
    if to.is_relative_to(real):
        raise FlowersError(f"--to: {str(to)!r} is inside --data.root, which stays as it is; choose another.")
    if to.exists() and not to.is_dir():
        raise FlowersError(f"--to: {str(to)!r} is a file; choose another name for the folder.")
    if to.is_dir() and any(to.iterdir()):
        raise FlowersError(f"--to: {str(to)!r} is not empty; empty it, or choose a folder that is not there.")


def plan_copy(listed: Sequence[Photo], decided: Review, sides: Mapping[str, str]) -> dict[str, str]:
    """Decide what each file of a clean copy is called, and log the names that had to change.

    A photo with a new label goes to that class's folder, on its side of the split. Where a file has its name
    there already, which two names that differ only in case count for, it gets a number.

    Args:
        listed: all files of the class folders.
        decided: the review.
        sides: see `folder.split_folders`.

    Returns:
        The path in the copy of each file, by its path in the root.
    """
    excluded, labels = set(decided.paths(EXCLUDE)), decided.relabelled
    moving = {
        photo.path: labels[photo.path]
        for photo in listed
        if labels.get(photo.path, photo.label) != photo.label
    }
    targets = {photo.path: photo.path for photo in listed if photo.path not in excluded | moving.keys()}
    depth = 1 if sides else 0
    folders: dict[tuple[str, ...], str] = {}
    for photo in listed:
        parts = PurePosixPath(photo.path).parts
        folders.setdefault((*parts[:depth], nfc(parts[depth])), parts[depth])
    taken = {_key(path) for path in targets}
    for path, label in moving.items():
        parts = PurePosixPath(path).parts
        folder = folders.get((*parts[:depth], nfc(label)), label)
        wanted = target = PurePosixPath(*parts[:depth], folder, *parts[depth + 1 :])
        number = 2
        while _key(str(target)) in taken:
            target = wanted.with_name(f"{wanted.stem} ({number}){wanted.suffix}")
            number += 1
        taken.add(_key(str(target)))
        targets[path] = str(target)
        if target != wanted:
            log.warning(
                "--apply: %s becomes %s, because there is another %s.",
                *map(printable, (path, str(target), str(wanted))),
            )
    return dict(sorted(targets.items()))


def _key(path: str) -> str:
    return nfc(path).casefold()


@contextmanager
def _unfinished(to: Path) -> Iterator[Path]:
    """Give the hidden folder beside `to` that is filled first, empty; remove it unless it has been renamed.

    Raises:
        FlowersError: another process fills it.
    """
    folder = to.with_name(f".{to.name}.flowers_pl-unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not take(handle):  # a lock on the folder: no file is left behind
            raise FlowersError(f"--to: another process is writing {str(to)!r}; let it end.")
        try:
            for left in folder.iterdir():  # by a killed process
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield folder
        finally:
            if os.path.exists(folder):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _copy(source: Path, target: Path) -> bool:
    """Copy a file with its times; return whether it could be read.

    Raises:
        OSError: the copy cannot be written, or the file system takes its name for another's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.is_file():
        log.warning("--apply: %s is not copied, because it is no file.", printable(str(source)))
        return False
    try:
        stream = source.open("rb")
    except OSError as error:
        log.warning("--apply: %s is not copied (%s).", printable(str(source)), reason_of(error))
        return False
    with stream, target.open("xb") as copy:
        shutil.copyfileobj(stream, copy)
    with suppress(OSError):
        shutil.copystat(source, target)
    return True


def _report(
    listed: Sequence[Photo], decided: Review, targets: Mapping[str, str], num_copied: int, to: Path
) -> None:
    num_moved = sum(source != target for source, target in targets.items())
    log.info(
        "%s holds a clean copy: %s, %d of them under another class; %d were left out. Train on it with 'fit"
        " --data.root %s'.",
        printable(str(to)), plural(num_copied, "file"), num_moved, len(decided.paths(EXCLUDE)),
        printable(str(to)),
    )  # fmt: skip
    old = {photo.label for photo in listed}
    new = {decided.relabelled.get(photo.path, photo.label) for photo in listed if photo.path in targets}
    if added := sorted(new - old):
        log.warning("--apply: new classes: %s.", printable(", ".join(added)))
    if gone := sorted(old - new):
        log.warning("--apply: classes of which no photo is left: %s.", printable(", ".join(gone)))

"""A folder of class folders -> the list of its photos."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import nfc, plural, printable
from flowers_pl.packs.roots import find_pack, refuse_pack

log = logging.getLogger(__name__)
NAMED = 20  # unreadable files that are named on screen
UNREADABLE, TWO_CLASSES, EXCLUDED = "unreadable", "under two classes", "excluded"
OTHER_SIDE, REVIEWED = "on another side of the split", "left out in a review"
TRAIN, VAL, TEST = "train", "val", "test"
SIDES = {
    "train": TRAIN, "training": TRAIN,
    "val": VAL, "valid": VAL, "validation": VAL,
    "test": TEST, "testing": TEST,
}  # fmt: skip
PICTURES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif",
    ".jp2", ".ppm",
)  # fmt: skip
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
        kind: for programs: `UNREADABLE`, `TWO_CLASSES`, `OTHER_SIDE`, `EXCLUDED` or `REVIEWED`; empty in
            lists that do not say.
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
        inside = Path(folder).relative_to(root).as_posix()
        for name in [*files, *links]:
            if not name.startswith("."):
                yield name if inside == "." else f"{inside}/{name}"
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
        classes = _folders(root)
    except PermissionError as error:
        raise FlowersError(
            f"{option}: there is no permission to read {str(root)!r}; fix its permissions or give another"
            " folder."
        ) from error
    if not classes:
        raise FlowersError(f"{option}: {str(root)!r} has no class folders; {LAYOUT}.")
    return classes


def split_folders(root: str | os.PathLike[str]) -> dict[str, str]:
    """Return the side of each folder of `root`, "train", "val" or "test", where they are a split.

    They are where every folder of the root is named so (in any case; also training, valid, validation and
    testing), one for training is among them, and each holds class folders, not photos.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for folder in ("Train/rose", "Train/tulip", "valid/rose"):
    ...         Path(root, folder).mkdir(parents=True)
    ...     split_folders(root)
    {'Train': 'train', 'valid': 'val'}
    """
    if (pack := find_pack(root)) is not None:
        return pack.index.sides
    try:
        names = _folders(root)
        sides = {name: SIDES[name.lower()] for name in names if name.lower() in SIDES}
        if len(sides) < len(names) or TRAIN not in sides.values():
            return {}
        flat = [name for name in names if not _folders(Path(root, name)) or _holds_photos(Path(root, name))]
    except OSError:
        return {}
    if flat and len(flat) < len(names):
        log.warning(
            "%s: the folders %s look like a split, but %s does not hold class folders alone, so they are"
            " taken for classes.", printable(str(root)), ", ".join(names), flat[0],
        )  # fmt: skip
    return {} if flat else sides


def _folders(root: str | os.PathLike[str]) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _holds_photos(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(PICTURES) and entry.is_file() for entry in entries)


def list_class_files(
    root: str | os.PathLike[str], option: str = "--data.root"
) -> tuple[list[str], list[Photo]]:
    """List the class folders of `root`, or of its folders train, val and test, and all files in them.

    Args:
        root: the folder of class folders, or of a split.
        option: that named the folder, for the messages.

    Returns:
        The class names, sorted, and the files, sorted by path. Names that look equal (in NFC) are one class.

    Raises:
        FlowersError: `root` is no folder or cannot be read, has no class folder, or one of them leads back
            above itself or has a name that cannot be printed.
    """
    root = Path(root)
    names: dict[str, str] = {}
    photos: list[Photo] = []
    if (pack := find_pack(root)) is not None:
        return pack.index.classes, [Photo(*entry) for entry in pack.listed]
    class_folders(root, option)
    for parent in split_folders(root) or [""]:
        folders = class_folders(root / parent, option)
        _check_names(root / parent, folders, option)
        for folder in folders:
            label = names.setdefault(nfc(folder), folder)
            inside = f"{parent}/{folder}".removeprefix("/")
            paths = (f"{inside}/{path}".removesuffix("/.") for path in files_below(root / inside))
            photos += [Photo(path, label) for path in paths]  # "." is the folder itself, which is closed
    return sorted(names.values()), sorted(photos)


def list_photos(root: str | os.PathLike[str], option: str = "--data.root") -> list[Photo]:
    """List all files in the class folders of `root`, sorted by path, whether they can be read or not.

    A class is a folder directly below `root`, or below its folders train, val and test where these are a
    split (see `split_folders`). Files directly in `root`, and hidden ones anywhere, are skipped.

    Args:
        root: the folder of class folders.
        option: that named the folder, for the messages.

    Raises:
        FlowersError: as `list_class_files` does; or a class folder is empty.
    """
    class_names, photos = list_class_files(root, option)
    if empty := sorted(set(class_names) - {photo.label for photo in photos}):
        folders = [Path(root, parent, empty[0]) for parent in split_folders(root) or [""]]
        folder = next((path for path in folders if path.is_dir()), folders[0])
        raise FlowersError(f"{option}: class folder {str(folder)!r} is empty; put photos there or remove it.")
    return photos


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
    photos: Iterable[Photo], listed: Iterable[Photo], root: str | os.PathLike[str], least: int = 2
) -> list[str]:
    """Return the class names, sorted, and check that each has enough photos.

    Args:
        photos: those that take part.
        listed: all that `list_photos` found.
        root: the folder, for the messages.
        least: photos that each class needs: 2 where they are split, 1 where they are all trained on.

    Raises:
        FlowersError: there is one class only, or a class has too few photos.
    """
    counts = Counter(photo.label for photo in photos)
    class_names = sorted({photo.label for photo in listed})
    if len(class_names) < 2:
        raise FlowersError(
            f"--data.root: {str(root)!r} has one class only, {class_names[0]!r}; at least two are needed."
        )
    needed = "at least two different ones there (one to train on, one to validate on)"
    for label in class_names:
        if counts[label] < least:
            raise FlowersError(
                f"--data.root: class {label!r} in {str(root)!r} has {plural(counts[label], 'usable photo')};"
                f" put {needed if least > 1 else 'some among the photos to train on'} or remove it."
            )
    return class_names


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
    refuse_pack(where, option)
    where = Path(where)
    if where.is_file():
        return where.parent, [where.name]
    if not where.is_dir():
        raise FlowersError(f"{option}: there is no photo or folder {str(where)!r}; give the path of one.")
    paths = sorted(files_below(where))
    if not paths:
        raise FlowersError(f"{option}: folder {str(where)!r} is empty; give a photo or a folder of photos.")
    return where, paths

"""The split into photos to train on and to validate with: 80/20, by class, duplicates on one side."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv, reading_table, write_csv
from flowers_pl.core.text import nfc, printable
from flowers_pl.data.folder import NAMED, OTHER_SIDE, TEST, TRAIN, TWO_CLASSES, VAL, LeftOut, Photo
from flowers_pl.data.reviews import RELABEL

log = logging.getLogger(__name__)
HEADER = ("path", "label", "side", "group")


class Placed(NamedTuple):
    """A photo and its side of the split.

    Args:
        path: see `folder.Photo`.
        label: its class.
        side: "train" or "val".
        group: path of the first of the photos that are duplicates of each other; its own where it has none.
        review: what a review did with it, "keep" or "relabel" (the label is then not its folder's), or "".
    """

    path: str
    label: str
    side: str
    group: str
    review: str = ""


def grouped_split(
    photos: Sequence[Photo], groups: np.ndarray, val_fraction: float, seed: int
) -> tuple[list[Placed], list[LeftOut]]:
    """Split by class, keeping each group of duplicates on one side; leave out groups in several classes.

    Groups are taken for validation in the order of a hash of (seed, path of the group's first photo), until
    the class has its share. So the split depends on nothing but the photos' paths, what duplicates what,
    `val_fraction` and `seed`, and adding photos moves few of the others.

    Args:
        photos: N of them.
        groups: int64 (N,), from `duplicates.duplicate_groups`.
        val_fraction: share of each class's photos that validate; one photo at least is on each side.
        seed: of the order.

    Returns:
        The photos with their sides, and those left out with the reason.
    """
    members: dict[int, list[Photo]] = defaultdict(list)
    for photo, group in zip(photos, groups.tolist(), strict=True):
        members[group].append(photo)
    placed: list[Placed] = []
    by_class: dict[str, list[list[Photo]]] = defaultdict(list)
    left_out = []
    for group in members.values():
        if len({photo.label for photo in group}) > 1:
            left_out += [LeftOut(photo.path, _conflict(photo, group), TWO_CLASSES) for photo in group]
        else:
            by_class[group[0].label].append(group)
    for of_class in by_class.values():
        validating = _take(of_class, val_fraction, seed)
        for group in of_class:
            side = VAL if group[0].path in validating else TRAIN
            placed += [Placed(photo.path, photo.label, side, group[0].path) for photo in group]
    return sorted(placed), sorted(left_out)


def _conflict(photo: Photo, group: list[Photo]) -> str:
    others = ", ".join(other.path for other in group if other.label != photo.label)
    return f"stands under another class too: {others}"


def _take(groups: list[list[Photo]], val_fraction: float, seed: int) -> set[str]:
    """Choose the groups of a class that validate, named by their first photos; leave one to train on."""
    wanted = max(1, round(val_fraction * sum(map(len, groups))))
    taken: set[str] = set()
    in_order = sorted(groups, key=lambda group: _order(seed, group[0].path))
    for group in in_order[: len(groups) - 1]:
        if len(group) <= wanted:
            taken.add(group[0].path)
            wanted -= len(group)
    if not taken and len(groups) > 1:  # all are larger than what is wanted
        taken.add(min(in_order, key=len)[0].path)
    return taken


def _order(seed: int, path: str) -> bytes:
    return hashlib.sha256(f"{seed}:{path}".encode(errors="surrogateescape")).digest()


def notebook_split(photos: Sequence[Photo], groups: np.ndarray, val_fraction: float) -> list[Placed]:
    """Split as the original notebook does, leaving nothing out.

    Keras's `flow_from_directory(validation_split=0.2)`: of each class's n file names, sorted, the first
    int(0.2 n) validate.

    Args:
        photos: N of them, sorted by path.
        groups: int64 (N,), which are only recorded.
        val_fraction: Keras's `validation_split`.
    """
    by_class: dict[str, list[Placed]] = defaultdict(list)
    for photo, group in zip(photos, groups.tolist(), strict=True):
        by_class[photo.label].append(Placed(photo.path, photo.label, TRAIN, photos[group].path))
    return sorted(
        photo._replace(side=VAL) if index < int(val_fraction * len(of_class)) else photo
        for of_class in by_class.values()
        for index, photo in enumerate(of_class)
    )


def folder_split(
    photos: Sequence[Photo], groups: np.ndarray, sides: Mapping[str, str], val_fraction: float, seed: int
) -> tuple[list[Placed], list[LeftOut]]:
    """Split as the folders of the root say; draw validation photos from the training side where it has none.

    Photos to train on that are duplicates of photos on another side, or of another class, are left out.

    Args:
        photos: N of them, of all sides.
        groups: int64 (N,), from `duplicates.duplicate_groups`.
        sides: the side of each folder directly below the root, as `folder.split_folders` gives it.
        val_fraction: share of the training photos that validate where there is no folder for them.
        seed: of their order.

    Returns:
        The photos to train on and to validate with, and those left out with the reason.
    """
    members: dict[int, list[Photo]] = defaultdict(list)
    for photo, group in zip(photos, groups.tolist(), strict=True):
        members[group].append(photo)

    def side(photo: Photo) -> str:
        return sides[photo.path.partition("/")[0]]

    placed: list[Placed] = []
    left_out: list[LeftOut] = []
    for group in members.values():
        for photo in group:
            elsewhere = [other.path for other in group if side(other) != side(photo)]
            if side(photo) == TRAIN and elsewhere:
                reason = f"is on another side of the split too: {', '.join(elsewhere)}"
                left_out.append(LeftOut(photo.path, reason, OTHER_SIDE))
            elif side(photo) == TRAIN and len({other.label for other in group}) > 1:
                left_out.append(LeftOut(photo.path, _conflict(photo, group), TWO_CLASSES))
            elif side(photo) != TEST:
                placed.append(Placed(photo.path, photo.label, side(photo), group[0].path))
    if VAL in sides.values():
        return sorted(placed), sorted(left_out)
    first = {group: index for index, group in reversed(list(enumerate(photo.group for photo in placed)))}
    numbers = np.array([first[photo.group] for photo in placed], dtype=np.int64)
    drawn, _ = grouped_split([Photo(*photo[:2]) for photo in placed], numbers, val_fraction, seed)
    return drawn, sorted(left_out)


def check_sides(
    placed: Sequence[Placed], class_names: Sequence[str], every_class: bool, validates: bool = True
) -> None:
    """Check that each side has the photos that it needs.

    Args:
        placed: the split.
        class_names: that must be trained on.
        every_class: whether each must be validated too; else one photo of any class is enough.
        validates: whether there is a validation side at all.

    Raises:
        FlowersError: a class has no photo to train on, or none to validate with.
    """
    present = {(photo.label, photo.side) for photo in placed}
    two = "put at least two different photos in its folder (copies count as one photo), or remove the folder"
    way_out = two if every_class else "put photos of it there, or remove the class"
    for label in class_names:
        for side in (TRAIN, VAL) if every_class else (TRAIN,):
            if (label, side) not in present:
                raise FlowersError(
                    f"--data.split: class {label!r} has no photo on the side {side!r}; {way_out}."
                )
    if not validates:
        return
    if unseen := [label for label in class_names if (label, VAL) not in present]:
        log.warning(
            "Classes without a photo to validate with: %s%s; nothing says how well the model knows them.",
            printable(", ".join(unseen[:NAMED])), ", …" if len(unseen) > NAMED else "",
        )  # fmt: skip
    if VAL not in {photo.side for photo in placed}:
        raise FlowersError(
            "--data.split: no photo is left to validate with; give more photos or a larger"
            " --data.val_fraction."
        )


def _match(placed: Sequence[Placed], photos: Sequence[Photo], decided: Container[str]) -> list[Photo | None]:
    """Find the photo of each row of a list, with the label that it gets; None where there is none."""
    known = {nfc(photo.path): photo for photo in photos}
    known |= {photo.path: photo for photo in photos}  # one that is spelled the same
    spelled = {nfc(photo.label): photo.label for photo in photos}

    def match(row: Placed) -> Photo | None:
        photo, label = known.get(row.path) or known.get(nfc(row.path)), spelled.get(nfc(row.label))
        if photo is None or photo.path in decided:
            return photo
        if row.review == RELABEL:
            return None if label is None else Photo(photo.path, label)
        return photo if photo.label == label else None

    return [match(row) for row in placed]


def straddling(placed: Sequence[Placed]) -> dict[str, list[str]]:
    """Return the groups of duplicates with photos on both sides: group -> paths."""
    groups: dict[str, list[Placed]] = defaultdict(list)
    for photo in placed:
        groups[photo.group].append(photo)
    return {
        group: [photo.path for photo in members]
        for group, members in groups.items()
        if len({photo.side for photo in members}) > 1
    }


def write_split(file: Path, placed: Sequence[Placed]) -> None:
    """Write the list that `read_split` reads; it has the column review where there was one."""
    reviewed = any(photo.review for photo in placed)
    write_csv(file, (*HEADER, "review") if reviewed else HEADER, (photo[: 4 + reviewed] for photo in placed))


def read_split(
    file: Path,
    photos: Sequence[Photo],
    excluded: Iterable[str] = (),
    decided: Container[str] = (),
    both: bool = True,
) -> list[Placed]:
    """Read a list that a run wrote: its photos and no others.

    Args:
        file: CSV with the columns path, label, side ("train" or "val") and group, and perhaps review; where
            that is "relabel", the label is the list's, not that of the photo's folder.
        photos: those that can be read.
        excluded: paths to ignore.
        decided: paths of those of `photos` whose label a review confirmed or changed, whatever the list says.
        both: whether it must have photos on both sides, which that of a refit has not.

    Raises:
        FlowersError: the file is missing or not such a list, or names a photo that is not among `photos`.
    """
    advice = "give 'grouped', 'notebook', or a run's split.csv"
    with reading_table("--data.split", file, advice, "use a run's split.csv"):
        rows = read_csv(file, HEADER)
    listed = [Placed(*(row.get(name, "") for name in (*HEADER, "review"))) for row in rows]
    excluded = {nfc(path) for path in excluded}
    placed = sorted(photo for photo in listed if nfc(photo.path) not in excluded)
    matching = _match(placed, photos, decided)
    unknown = [photo for photo, match in zip(placed, matching, strict=True) if match is None]
    for photo in placed:
        if photo.side not in (TRAIN, VAL):
            raise FlowersError(
                f"--data.split: {str(file)!r} has side {photo.side!r} for {photo.path!r}; it must be train or"
                " val."
            )
    if unknown:
        path, label = unknown[0][:2]
        more = f", and {len(unknown) - 1:,} more of its {len(placed):,} rows name none" if unknown[1:] else ""
        raise FlowersError(
            f"--data.split: {str(file)!r} names {path!r}, which is not among the readable photos of class"
            f" {label!r} below --data.root{more}; give the root that the list was written for."
        )
    placed = sorted(
        photo._replace(path=match.path, label=match.label)
        for photo, match in zip(placed, matching, strict=True)
        if match is not None
    )
    twice = next((one.path for one, other in pairwise(placed) if one.path == other.path), None)
    if twice is not None:
        raise FlowersError(f"--data.split: {str(file)!r} has two rows of {twice!r}; remove one.")
    if both and {photo.side for photo in placed} != {TRAIN, VAL}:
        raise FlowersError(f"--data.split: {str(file)!r} must have photos on both sides, train and val.")
    return placed

"""The photos of a root, listed and decoded -> both sides of the split, and the log lines that say so."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lightning.pytorch.strategies import Strategy

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import nfc, printable
from flowers_pl.data.batches import CachedPhotos
from flowers_pl.data.cache import DecodedPhotos
from flowers_pl.data.draws import DRAWS
from flowers_pl.data.duplicates import duplicate_groups
from flowers_pl.data.exclusions import leave_out
from flowers_pl.data.folder import (
    NAMED,
    OTHER_SIDE,
    TEST,
    TRAIN,
    VAL,
    LeftOut,
    Photo,
    check_classes,
    report_left_out,
    split_folders,
)
from flowers_pl.data.reviews import mend, open_review
from flowers_pl.data.split import (
    Placed,
    check_sides,
    folder_split,
    grouped_split,
    notebook_split,
    read_split,
    straddling,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitSettings:
    """What decides the split.

    Args:
        root: the folder of class folders.
        split: 'grouped', 'notebook', or a path to a split.csv that a run wrote.
        val_fraction: share of the photos that validate.
        split_seed: decides which.
        exclude: a CSV file that names photos to leave out.
        review: a CSV file of a person's decisions on photos.
        skip_unreadable: whether a run goes on without photos that cannot be read.
        all_of: a split.csv that takes the place of `split` and `exclude`: the photos of both its sides are
            trained on, and none validates.
    """

    root: Path
    split: str
    val_fraction: float
    split_seed: int
    exclude: str | None
    review: str | None
    skip_unreadable: bool
    all_of: Path | None = None


@dataclass(frozen=True)
class SplitPhotos:
    """The photos of a root, split.

    Args:
        class_names: in the order of the labels.
        placed: the photos that take part, each with its side.
        left_out: the others, each with the reason.
        train: the photos to train on.
        val: the photos to validate with.
    """

    class_names: list[str]
    placed: list[Placed]
    left_out: list[LeftOut]
    train: CachedPhotos
    val: CachedPhotos

    @classmethod
    def from_decoded(
        cls,
        listed: Sequence[Photo],
        decoded: DecodedPhotos,
        settings: SplitSettings,
        seed: int,
        model_classes: Sequence[str] = (),
        num_draws: int = DRAWS,
    ) -> SplitPhotos:
        """Leave out, correct labels, group duplicates and split; log what was done.

        Args:
            listed: all files of the class folders.
            decoded: what the cache holds of them.
            settings: what decides the split.
            seed: of augmentation and dropout on the training side.
            model_classes: the classes of a trained model; none for those of the photos.
            num_draws: for the augmentation of each photo.

        Raises:
            FlowersError: the photos, the split, the list of exclusions or the review are not usable.
        """
        if settings.all_of is not None:
            settings = replace(settings, split=str(settings.all_of), exclude=None, review=None)
        sides = split_folders(settings.root)
        by_folders = bool(sides) and settings.split == "grouped"
        testing = {photo.path for photo in listed if sides.get(photo.path.partition("/")[0]) == TEST}
        compared, excluded = leave_out(decoded, settings.exclude)  # with the photos to test on
        aside = {"is on the list of --data.exclude": {entry.path for entry in excluded}}
        aside |= {"is among the photos to test on": testing}
        review = open_review(settings.review, settings.root, listed, aside)
        compared, rejected = mend(compared, review, Path(settings.review or "").name)
        excluded += rejected
        usable = compared.without(testing)
        report_left_out(usable.left_out, settings.root, settings.skip_unreadable)
        listed = [photo for photo in listed if photo.path not in testing]
        all_trained = by_folders and VAL in sides.values()
        drawn = settings.split in ("grouped", "notebook") and not all_trained
        found = check_classes(usable.photos, listed, settings.root, least=2 if drawn else 1)
        class_names = list(model_classes) or found
        class_numbers(found, class_names, settings.root)
        if by_folders:
            log.info("%s: its folders are used as the split: %s.", settings.root, ", ".join(sides))
            groups = duplicate_groups(compared.digests, compared.phashes, compared.thumbs, compared.folder)
            placed, conflicts = folder_split(
                compared.photos, groups, sides, settings.val_fraction, settings.split_seed
            )
        else:
            placed, conflicts = _split(usable, settings, {entry.path for entry in excluded}, review.used)
        placed = [
            photo._replace(review=review.used[photo.path].action) if photo.path in review.used else photo
            for photo in placed
        ]
        if settings.all_of is not None:
            placed = [photo._replace(side=TRAIN) for photo in placed]
        check_sides(placed, found, settings.split == "grouped" and not all_trained, settings.all_of is None)
        _log_split(placed, class_names, settings, len(usable.left_out), conflicts, len(excluded))

        def side(name: str, seed: int | None) -> CachedPhotos:
            members = [photo for photo in placed if photo.side == name]
            rows = usable.rows_of(photo.path for photo in members)
            labels = class_numbers([photo.label for photo in members], class_names, settings.root)
            return CachedPhotos(usable, rows, labels, seed, num_draws)

        left_out = sorted([*usable.left_out, *conflicts, *excluded])
        return cls(class_names, placed, left_out, side(TRAIN, seed), side(VAL, None))

    def paths(self, side: str) -> list[str]:
        """Return the paths of the photos on a side, in the order of its rows."""
        return [photo.path for photo in self.placed if photo.side == side]

    def check_ranks_agree(self, strategy: Strategy, root: Path) -> None:
        """Check that all ranks found the same photos: each lists them for itself, and they may change.

        Raises:
            FlowersError: they did not.
        """
        if not strategy.reduce_boolean_decision(strategy.broadcast(self.placed) == self.placed):
            raise FlowersError(
                f"--data.root: the processes of this run see different photos in {str(root)!r}; copy"
                " the folder from one machine to the others or, if it changed just now, start again."
            )


def class_numbers(
    labels: Sequence[str], class_names: Sequence[str], root: Path, option: str = "--data.root"
) -> np.ndarray:
    """Return the numbers of classes, int64 (N,), by their names.

    Raises:
        FlowersError: a name is not among `class_names`.
    """
    number = {nfc(name): label for label, name in enumerate(class_names)}
    if unknown := sorted({name for name in labels if nfc(name) not in number}):
        more = f" and {len(class_names) - NAMED:,} more" if len(class_names) > NAMED else ""
        raise FlowersError(
            f"{option}: {str(root)!r} has class {unknown[0]!r}, which the model does not know; it knows"
            f" {', '.join(class_names[:NAMED])}{more}."
        )
    return np.array([number[nfc(name)] for name in labels], dtype=np.int64)


def _split(
    decoded: DecodedPhotos, settings: SplitSettings, excluded: Collection[str], decided: Collection[str]
) -> tuple[list[Placed], list[LeftOut]]:
    groups = duplicate_groups(decoded.digests, decoded.phashes, decoded.thumbs, decoded.folder)
    if settings.split == "grouped":
        return grouped_split(decoded.photos, groups, settings.val_fraction, settings.split_seed)
    if settings.split == "notebook":
        return notebook_split(decoded.photos, groups, settings.val_fraction), []
    both = settings.all_of is None
    return read_split(Path(settings.split), decoded.photos, excluded, decided, both), []


def _log_split(
    placed: Sequence[Placed],
    class_names: Sequence[str],
    settings: SplitSettings,
    num_unreadable: int,
    conflicts: Sequence[LeftOut],
    num_excluded: int,
) -> None:
    sides = [photo.side for photo in placed]
    num_out = num_unreadable + len(conflicts) + num_excluded
    num_across = sum(entry.kind == OTHER_SIDE for entry in conflicts)
    across = f"{num_across} on another side too, " if num_across else ""
    num_classes = len(conflicts) - num_across
    why = f"({num_unreadable} unreadable, {across}{num_classes} under two classes, {num_excluded} excluded)"
    known = num_out or settings.split in ("grouped", "notebook")  # a split.csv does not say what it left out
    log.info(
        "%s: %d classes, %d photos to train on, %d to validate with%s.",
        settings.root, len(class_names), sides.count(TRAIN), sides.count(VAL),
        f", {num_out} left out {why}" if known else "",
    )  # fmt: skip
    for path, reason, _ in conflicts:
        log.warning("Left out: %s %s.", printable(path), printable(reason))
    for paths in straddling(placed).values():
        log.warning("Duplicates are on both sides of the split: %s.", printable(", ".join(paths)))


def check_settings(
    image_size: int,
    val_fraction: float,
    workers: int | None,
    batch_size: int = 1,
    drawn: int = 0,
    stored_size: int | None = None,
    cache_limit: float | None = None,
) -> None:
    """Check numbers among the settings; `audit` has some of them.

    Raises:
        FlowersError: one is out of its range.
    """
    if image_size < 32:
        raise FlowersError(
            f"--data.image_size must be at least 32 (the backbone halves it five times), not {image_size}."
        )
    if stored_size is not None and stored_size < image_size:
        raise FlowersError(
            f"--data.stored_size must be at least --data.image_size ({image_size}), not {stored_size}."
        )
    if not 0 < val_fraction < 1:
        raise FlowersError(f"--data.val_fraction must be more than 0 and less than 1, not {val_fraction}.")
    if workers is not None and workers < 0:
        raise FlowersError(f"--data.workers must be 0 or more, not {workers}.")
    if batch_size < 1:
        raise FlowersError(f"--data.batch_size must be at least 1, not {batch_size}.")
    if drawn < 0 or drawn == 1:
        raise FlowersError(f"--data.drawn must be 0 or at least 2, not {drawn}.")
    if cache_limit is not None and not 0 < cache_limit < float("inf"):
        raise FlowersError(f"--data.cache_limit must be more than 0, not {cache_limit}.")

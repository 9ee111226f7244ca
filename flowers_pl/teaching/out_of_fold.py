"""Let teachers judge all photos, each by one that never saw it, fold by fold -> the table of soft labels."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowers_pl.core.columns import FOLD, TEACHER_PHOTOS, class_columns
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_json, replacing, write_csv, write_json
from flowers_pl.data.batches import CachedPhotos
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.folder import TRAIN, VAL
from flowers_pl.data.split import Placed
from flowers_pl.teaching.folds import fold_numbers
from flowers_pl.teaching.loop import Recipe, judge, train
from flowers_pl.teaching.networks import TeacherKind, make_teacher

log = logging.getLogger(__name__)
VERSION = 1  # of what a fold's result depends on besides its settings: a change there needs a new number


class Lesson(NamedTuple):
    """The photos that a teacher is trained on and judges.

    Args:
        placed: N of them, in the order of their rows.
        classes: in the order of the labels.
        photos: at the network's size.
        stored: the same, as they are kept for the augmentation.
    """

    placed: list[Placed]
    classes: list[str]
    photos: CachedPhotos
    stored: CachedPhotos

    @classmethod
    def of(cls, data: FlowersDataModule, all_photos: bool) -> Lesson:
        """Take the training side of the data, or both sides.

        Args:
            data: set up for `fit`.
            all_photos: whether the photos to validate with take part.
        """
        placed = [photo for photo in data.placed if photo.side == TRAIN]
        photos, stored = data.train_photos, data.kept_photos(TRAIN)
        if all_photos:
            placed += [photo for photo in data.placed if photo.side == VAL]
            photos, stored = _with(photos, data.val_photos), _with(stored, data.kept_photos(VAL))
        return cls(placed, data.classes, photos, stored)


def _with(train: CachedPhotos, val: CachedPhotos) -> CachedPhotos:
    """Return the photos of both sides, of the first one's size."""
    both = copy.copy(train)
    both.rows = np.concatenate([train.rows, val.rows])
    both.labels = np.concatenate([train.labels, val.labels])
    return both


class Judged(NamedTuple):
    """What teachers have said.

    Args:
        folds: int64 (N,): the fold of each photo.
        shares: float64 (N, num_classes).
        correct: bool (N,): whether the likeliest class is the photo's own.
    """

    folds: np.ndarray
    shares: np.ndarray
    correct: np.ndarray

    @property
    def accuracy(self) -> float:
        """The cross-validated accuracy."""
        return float(self.correct.mean())


def teach(
    lesson: Lesson, kind: TeacherKind, weights: str | None, folds: int, recipe: Recipe, work: Path
) -> Judged:
    """Train a teacher for each fold, on all photos of the others, and let it judge the photos of this one.

    Args:
        lesson: the photos.
        kind: of the teacher.
        weights: see `make_teacher`.
        folds: how many.
        recipe: how a teacher is trained.
        work: folder for the results of folds; those that are there, of the same settings and photos, are
            taken over.

    Raises:
        FlowersError: there are too few photos, the teacher cannot be had, or its loss is not finite.
    """
    numbers = fold_numbers(lesson.placed, folds, recipe.seed)
    key = _fingerprint(lesson, kind, weights, numbers, recipe)
    shares = np.zeros((len(numbers), len(lesson.classes)))
    labels = lesson.photos.labels
    for fold in range(folds):
        members, others = np.flatnonzero(numbers == fold), np.flatnonzero(numbers != fold)
        if not len(members):
            continue
        name, file = f"Fold {fold + 1} of {folds}", work / f"fold-{fold}.json"
        found = _finished(file, key, (len(members), len(lesson.classes)))
        if found is None:
            teacher = make_teacher(kind, len(lesson.classes), recipe.size, weights, recipe.seed)
            average = train(teacher.to(recipe.device), lesson.stored, others, recipe, name)
            found = judge(average, lesson.photos, members, recipe)
            write_json(file, {"of": key, "probabilities": found.tolist()})
        else:
            log.info("%s is taken from %s.", name, file)
        shares[members] = found
        correct = found.argmax(1) == labels[members]
        log.info(
            "%s: %.4f of %d photos right, by a teacher that never saw them.",
            name, correct.mean(), len(members),
        )  # fmt: skip
    return Judged(numbers, shares, shares.argmax(1) == labels)


def _fingerprint(
    lesson: Lesson, kind: TeacherKind, weights: str | None, numbers: np.ndarray, recipe: Recipe
) -> str:
    """Return a digest of all that decides the result of a fold, but for the machine."""
    settings = asdict(recipe) | {"device": "", "workers": 0, "stored": lesson.stored.pixels.shape[1]}
    content = hashlib.sha256()
    names = [[photo.path, photo.label] for photo in lesson.placed]
    facts = [VERSION, kind.name, settings, lesson.classes, names, numbers.tolist()]
    content.update(json.dumps(facts, sort_keys=True).encode())
    if weights is not None:
        with open(weights, "rb") as stream:
            content.update(hashlib.file_digest(stream, "sha256").digest())
    for photos in (lesson.photos, lesson.stored):
        for start in range(0, len(photos), 256):
            rows = np.arange(start, min(start + 256, len(photos)))
            content.update(photos.read(rows).permute(0, 2, 3, 1).contiguous().numpy().data)
    return content.hexdigest()


def _finished(file: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the probabilities of a fold that was finished before; None where there is none that fits."""
    with suppress(OSError, ValueError, TypeError, KeyError):  # a file that something else wrote
        saved = read_json(file)
        if saved["of"] == key:
            found = np.array(saved["probabilities"], np.float64)
            return found if found.shape == shape else None
    return None


def write_soft_labels(file: Path, lesson: Lesson, judged: Judged, facts: Mapping[str, Any]) -> None:
    """Write the table that `data.soft_labels` reads, and a JSON file beside it that says how it was made.

    Args:
        file: the table.
        lesson: the photos.
        judged: what teachers said of them.
        facts: for the JSON file, which also gets the accuracy.
    """
    accuracies = [
        float(judged.correct[judged.folds == fold].mean()) for fold in np.unique(judged.folds).tolist()
    ]
    results = {
        "photos": len(lesson.placed),
        "cross_validated_accuracy": judged.accuracy,
        "accuracy_by_fold": accuracies,
    }
    write_json(file.with_suffix(".json"), {**facts, **results})
    header = ["path", "label", *class_columns(lesson.classes), FOLD, TEACHER_PHOTOS]
    with replacing(file) as unfinished:
        write_csv(unfinished, header, _rows(lesson, judged))


def _rows(lesson: Lesson, judged: Judged) -> Sequence[list[str]]:
    order = sorted(range(len(lesson.placed)), key=lambda row: lesson.placed[row].path)
    return [
        [
            lesson.placed[row].path,
            lesson.classes[int(judged.shares[row].argmax())],
            *(f"{share:.6f}" for share in judged.shares[row]),
            str(judged.folds[row]),
            str(len(order)),
        ]
        for row in order
    ]


def check_name(file: Path) -> None:
    """Refuse what cannot be the name of a table.

    Raises:
        FlowersError: it is a folder, or its JSON file would take its place.
    """
    if file.is_dir() or not file.name:
        raise FlowersError(
            f"--out: {str(file)!r} is a folder; name a file in it, for example"
            f" {str(file / 'soft_labels.csv')!r}."
        )
    if file.suffix == ".json":
        raise FlowersError(
            f"--out: {str(file)!r} is the name of the JSON file beside the table; give a .csv."
        )


def check_table(file: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to replace a table of another teacher or of other photos.

    Args:
        file: the table.
        facts: some of those that `write_soft_labels` gets, which must be the same.

    Raises:
        FlowersError: there is such a table.
    """
    try:
        before = read_json(file.with_suffix(".json"))
        other = next((name for name in facts if before[name] != facts[name]), None)
    except (OSError, ValueError, LookupError, TypeError):  # none, or something else
        return
    if other is not None and file.exists():
        raise FlowersError(
            f"--out: {str(file)!r} was made with another {other} ({before[other]}, not {facts[other]}); move"
            " it away, or name another file."
        )

"""Soft labels: the probabilities that a teacher, or a person, gives for training photos -> targets.

The file is a CSV file as `predict` writes it: the column path and one for each class. `teach` adds two
columns, so that a copy of the file alone still says which photos the teacher was trained on: all that have a
row (`teacher:fold` is the part that the row's photo is in, `teacher:photos` the number of rows, so that a
file that has lost some is noticed).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowers_pl.core.columns import FOLD, TEACHER_PHOTOS, class_columns
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv, reading_table, sha256_of
from flowers_pl.core.text import nfc, plural, printable
from flowers_pl.data.exclusions import match_names
from flowers_pl.data.folder import TRAIN, VAL
from flowers_pl.data.split import Placed

log = logging.getLogger(__name__)
OPTION = "--data.soft_labels"
TOLERANCE = 1e-3  # of the sum of a photo's probabilities


class SoftLabelTable(NamedTuple):
    """What a file of soft labels says.

    Args:
        shares: float64 (num_classes,) by path: the probability of each class.
        by_teacher: whether the file says which photos its teacher was trained on: those in `shares`.
    """

    shares: dict[str, np.ndarray]
    by_teacher: bool


def read_soft_labels(file: str | Path, class_names: Sequence[str]) -> SoftLabelTable:
    """Read soft labels.

    A photo whose row has no probability at all, because it could not be read, has no soft label.

    Args:
        file: CSV with the column path and the columns of `class_columns`; others are ignored.
        class_names: in the order of the labels.

    Raises:
        FlowersError: it is missing or no such table; or a row holds something else than probabilities that
            sum to 1, names a photo a second time, or is missing. The sentence names the file and the row.
    """
    advice = "give a table that 'teach' or 'predict' wrote"
    columns = "give a table with the column path and one for each class, as 'teach' and 'predict' write it"
    with reading_table(OPTION, file, advice, columns):
        rows = read_csv(file, ["path"])
        spelled = _columns(rows[0] if rows else {}, class_names)
    shares: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows, start=2):  # as a spreadsheet counts, below the row of the names
        path = row["path"].removeprefix("./")
        cells = [row[column].strip() for column in spelled]
        try:
            if path in shares:
                raise ValueError("names this photo a second time; remove one of the two rows")
            if any(cells):
                shares[path] = _probabilities(cells, class_names)
        except ValueError as fault:
            raise FlowersError(f"{OPTION}: row {number} of {str(file)!r} ({path!r}) {fault}.") from fault
    by_teacher = any(row.get(FOLD) or row.get(TEACHER_PHOTOS) for row in rows)
    if by_teacher and any(row.get(TEACHER_PHOTOS) != str(len(shares)) for row in rows):
        raise FlowersError(
            f"{OPTION}: {str(file)!r} has {plural(len(shares), 'row')}, which is not the number in its column"
            f" {TEACHER_PHOTOS!r}, so it no longer names all photos that its teacher was trained on; give the"
            " file as 'teach' wrote it."
        )
    return SoftLabelTable(shares, by_teacher)


def _columns(row: Mapping[str, str], class_names: Sequence[str]) -> list[str]:
    """Return the names of the classes' columns as a table spells them.

    Raises:
        LookupError: it lacks one, which the error names.
    """
    spelled = {nfc(name): name for name in row} | {name: name for name in row}
    columns = [spelled.get(name, spelled.get(nfc(name))) for name in class_columns(class_names)]
    for name, column in zip(class_columns(class_names), columns, strict=True):
        if column is None:
            raise LookupError(name)
    return [column for column in columns if column is not None]


def _probabilities(cells: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Return the probabilities in a row, float64.

    Raises:
        ValueError: they are none; the error says why, and what to do.
    """
    values = []
    for cell, name in zip(cells, class_names, strict=True):
        try:
            value = float(cell)
        except ValueError as error:
            raise ValueError(
                f"has {cell!r} for class {name!r}, which is no number; give a probability"
            ) from error
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"has {cell} for class {name!r}; give probabilities from 0 to 1")
        values.append(value)
    if abs(math.fsum(values) - 1) > TOLERANCE:
        raise ValueError(
            f"has probabilities that sum to {math.fsum(values):.4f}; give ones that sum to 1 over the classes"
            " of --data.root"
        )
    return np.array(values)


class SoftLabels:
    """The soft labels of a run.

    Args:
        file: see `read_soft_labels`; None for none.
        weight: their share of the targets, 0 to 1; the rest is the photos' own labels.

    Raises:
        FlowersError: the weight is out of its range.
    """

    def __init__(self, file: str | None, weight: float) -> None:
        if not 0 <= weight <= 1:
            raise FlowersError(f"{OPTION}_weight must be from 0 to 1, not {weight}.")
        self.file, self.weight = None if file is None else Path(file).resolve(), weight
        self._digest: str | None = None  # of what was read, which may have changed since

    def targets(
        self, class_names: Sequence[str], placed: Sequence[Placed], labels: np.ndarray
    ) -> np.ndarray | None:
        """Return what each training photo is trained on; one without a soft label has its own label.

        Args:
            class_names: in the order of the labels.
            placed: the photos of both sides.
            labels: int64 (N,): the classes of the training photos, in the order of `placed`.

        Returns:
            float32 (N, num_classes): (1 - weight) one-hot label + weight * soft label; None without a file.

        Raises:
            FlowersError: the file is not usable, or its teacher was trained on photos to validate with.
        """
        if self.file is None:
            return None
        self._digest = sha256_of(self.file)
        table = read_soft_labels(self.file, class_names)
        shares = match_names(table.shares, [photo.path for photo in placed])
        if len(shares) < len(table.shares):
            raise FlowersError(
                f"{OPTION}: {str(self.file)!r} spells the path of a photo in two ways; remove one of the two"
                " rows."
            )
        training = [photo.path for photo in placed if photo.side == TRAIN]
        validating = [photo.path for photo in placed if photo.side == VAL and photo.path in shares]
        if table.by_teacher and validating:
            raise FlowersError(
                f"{OPTION}: the teacher of {str(self.file)!r} was trained on"
                f" {plural(len(validating), 'photo')} that this run validates with, {validating[0]!r} for"
                " example, so the validation figures would be too good; run 'teach' with the --data.split and"
                " --data.split_seed of this run, or give this run those that the file was written with."
            )
        soft = [row for row, path in enumerate(training) if path in shares]
        if not soft:
            raise FlowersError(
                f"{OPTION}: {str(self.file)!r} names none of the {len(training):,} photos to train on; give"
                " the file that was written for this folder, with paths relative to it."
            )
        targets = np.eye(len(class_names))[labels]
        for row in soft:
            targets[row] = (1 - self.weight) * targets[row] + self.weight * shares[training[row]]
        self._log(table, len(soft), len(training), len(validating))
        return targets.astype(np.float32)

    def _log(self, table: SoftLabelTable, num_soft: int, num_training: int, num_validating: int) -> None:
        name, unknown = printable(str(self.file)), len(table.shares) - num_soft - num_validating
        log.info(
            "Soft labels of %d of the %d photos to train on, with weight %g, from %s; its other rows: %d of"
            " photos to validate with, which stay as they are, and %d that match no photo that takes part.",
            num_soft, num_training, self.weight, name, num_validating, unknown,
        )  # fmt: skip
        if not table.by_teacher:
            log.warning(
                "It is not known which photos the author of %s was trained on: if photos to validate with are"
                " among them, the validation figures are too good.",
                name,
            )

    def state(self) -> dict[str, str]:
        """Return what a checkpoint keeps: a digest of the file; nothing without one."""
        return {} if self.file is None else {"soft_labels": self._digest or sha256_of(self.file)}

    def report_change(self, saved: Mapping[str, str]) -> None:
        """Log that a resumed run has a file of the same name with other content.

        Args:
            saved: the state in the checkpoint.
        """
        if self.file is not None and saved.get("soft_labels") != self.state()["soft_labels"]:
            log.warning("Changed for this resume: the content of %s %s.", OPTION, printable(str(self.file)))

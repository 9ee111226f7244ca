"""predictions.csv, and the short table of it that is printed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from flowers_pl.core.columns import class_columns
from flowers_pl.core.files import write_csv
from flowers_pl.core.text import printable, text_width
from flowers_pl.data.batches import Prediction
from flowers_pl.evaluation.growing_table import GrowingTable

SHOWN = 20  # rows on the screen


class Row(NamedTuple):
    """One photo's prediction.

    Args:
        path: of the photo, relative to the folder that was predicted.
        label: the likeliest class; empty where the photo could not be read.
        probabilities: of each class, in the model's order; empty likewise.
        error: why the photo could not be read, else empty.
        unlike: how unlike the training photos it is (`network.novelty`); None where that is not known.
    """

    path: str
    label: str
    probabilities: Sequence[float]
    error: str
    unlike: float | None = None

    @property
    def unknown(self) -> bool:
        """Say whether the picture probably shows none of the classes."""
        return self.unlike is not None and self.unlike > 1


def prediction_rows(
    predictions: Iterable[Prediction], paths: Sequence[str], class_names: Sequence[str]
) -> list[Row]:
    """Return one row per photo, in the order of `paths`."""
    rows: dict[int, Row] = {}
    for batch in predictions:
        scores = [None] * len(batch.rows) if batch.unlike is None else batch.unlike.tolist()
        for index, shares, score in zip(
            batch.rows.tolist(), batch.probabilities.tolist(), scores, strict=True
        ):
            likeliest = class_names[max(range(len(class_names)), key=shares.__getitem__)]
            rows[index] = Row(paths[index], likeliest, shares, "", score)
        rows |= {index: Row(paths[index], "", (), reason) for index, reason in batch.unreadable}
    return [rows[index] for index in sorted(rows)]


def write_predictions(file: str | os.PathLike[str], rows: Sequence[Row], class_names: Sequence[str]) -> None:
    """Write the columns path, label, a probability per class, unlike and unknown where known, and error.

    Classes have the columns of `class_columns`.
    """
    scored = any(row.unlike is not None for row in rows)
    write_csv(file, _header(class_names, scored), (_cells(row, len(class_names), scored) for row in rows))


def _header(class_names: Sequence[str], scored: bool) -> list[str]:
    novelty = ("unlike", "unknown") if scored else ()
    return ["path", "label", *class_columns(class_names), *novelty, "error"]


def _cells(row: Row, num_classes: int, scored: bool) -> list[str]:
    shares = [f"{share:.6f}" for share in row.probabilities] or [""] * num_classes
    return [row.path, row.label, *shares, *_novelty(row)[: 2 * scored], row.error]


def _novelty(row: Row) -> tuple[str, str]:
    return ("", "") if row.unlike is None else (f"{row.unlike:.4f}", "yes" if row.unknown else "no")


class PredictionTable(GrowingTable):
    """The table that `write_predictions` writes, of predictions as they come.

    Args:
        file: the table.
        paths: of all photos, in the order of the rows.
        class_names: of the model.
        scored: whether the model has a measure of novelty.
        origin: see `GrowingTable`.

    Attributes:
        first: the first rows that this process has added, for the screen.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        paths: Sequence[str],
        class_names: Sequence[str],
        scored: bool,
        origin: Mapping[str, str],
    ) -> None:
        header = _header(class_names, scored)
        quoted = any("\r" in text for names in (header, paths) for text in names)
        super().__init__(file, header, origin, quoted)
        self.paths, self.class_names, self.scored = paths, class_names, scored
        self.first: list[Row] = []

    def add_predictions(self, predictions: Iterable[Prediction]) -> None:
        """Add the batches that come next, which may be in any order among themselves."""
        rows = prediction_rows(predictions, self.paths, self.class_names)
        self.first += rows[: SHOWN - len(self.first)]
        cells = [_cells(row, len(self.class_names), self.scored) for row in rows]
        self.add(cells, marked=sum(bool(row.error) for row in rows))

    def lines(self) -> str:
        """Return the first rows for the screen, and how many photos there are besides."""
        more = self.done.rows - len(self.first)
        return "\n".join([*prediction_table(self.first), *([f"… and {more} more"] if more else [])])


def prediction_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for the screen of each photo: path, then label and probability or error."""
    names = [printable(row.path) for row in rows]
    width = max(map(text_width, names), default=0)
    for name, row in zip(names, rows, strict=True):
        doubt = f"  probably none of the classes (unlike {row.unlike:.3f})" if row.unknown else ""
        gap, label = " " * (width - text_width(name) + 2), printable(row.label)
        label += " " * (12 - text_width(label))
        yield f"{name}{gap}" + (printable(row.error) or f"{label} {max(row.probabilities):6.1%}{doubt}")

"""predictions.csv, and the short table on the screen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from flowers_pl.classifier import Prediction
from flowers_pl.photos import write_csv


class Row(NamedTuple):
    """One photo's prediction.

    Args:
        path: of the photo, relative to the folder that was predicted.
        label: the likeliest class; empty where the photo could not be read.
        probabilities: of each class, in the model's order; empty likewise.
        error: why the photo could not be read, else empty.
    """

    path: str
    label: str
    probabilities: Sequence[float]
    error: str


def prediction_rows(
    predictions: Iterable[Prediction], paths: Sequence[str], classes: Sequence[str]
) -> list[Row]:
    """One row a photo, in the order of `paths`."""
    rows: dict[int, Row] = {}
    for some in predictions:
        for place, shares in zip(some.rows.tolist(), some.probabilities.tolist(), strict=True):
            rows[place] = Row(
                paths[place], classes[max(range(len(classes)), key=shares.__getitem__)], shares, ""
            )
        rows |= {place: Row(paths[place], "", (), reason) for place, reason in some.unreadable}
    return [rows[place] for place in sorted(rows)]


def write_predictions(file: str | os.PathLike[str], rows: Iterable[Row], classes: Sequence[str]) -> None:
    """Write path, label, one probability column a class, error."""
    cells = ([row.path, row.label, *_shares(row, classes, ".6f"), row.error] for row in rows)
    write_csv(file, ["path", "label", *classes, "error"], cells)


def _shares(row: Row, classes: Sequence[str], form: str) -> list[str]:
    return [format(share, form) for share in row.probabilities] or [""] * len(classes)


def prediction_table(rows: Sequence[Row], most: int = 20) -> Iterator[str]:
    """Lines for the screen: path, label, probability or error; the first `most` photos."""
    width = max((len(row.path) for row in rows[:most]), default=0)
    for row in rows[:most]:
        yield f"{row.path:<{width}}  " + (row.error or f"{row.label:<12} {max(row.probabilities):6.1%}")
    if len(rows) > most:
        yield f"… and {len(rows) - most} more"

"""predictions.csv, and the short table on the screen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from flowers_pl.core.files import write_csv
from flowers_pl.core.text import printable
from flowers_pl.data.batches import Prediction


class Row(NamedTuple):
    """One photo's prediction.

    Args:
        path: of the photo, relative to the folder that was predicted.
        label: the likeliest class; empty where the photo could not be read.
        probabilities: of each class, in the model's order; empty likewise.
        error: why the photo could not be read, else empty.
        unlike: how unlike the training photos it is, see `unlike.Unlike`; None where that is not known.
    """

    path: str
    label: str
    probabilities: Sequence[float]
    error: str
    unlike: float | None = None

    @property
    def unknown(self) -> bool:
        """Whether the picture is probably of none of the classes."""
        return self.unlike is not None and self.unlike > 1


def prediction_rows(
    predictions: Iterable[Prediction], paths: Sequence[str], classes: Sequence[str]
) -> list[Row]:
    """One row a photo, in the order of `paths`."""
    rows: dict[int, Row] = {}
    for some in predictions:
        unlike = [None] * len(some.rows) if some.unlike is None else some.unlike.tolist()
        for place, shares, score in zip(some.rows.tolist(), some.probabilities.tolist(), unlike, strict=True):
            likeliest = classes[max(range(len(classes)), key=shares.__getitem__)]
            rows[place] = Row(paths[place], likeliest, shares, "", score)
        rows |= {place: Row(paths[place], "", (), reason) for place, reason in some.unreadable}
    return [rows[place] for place in sorted(rows)]


def write_predictions(file: str | os.PathLike[str], rows: Sequence[Row], classes: Sequence[str]) -> None:
    """Write path, label, one probability column a class, unlike and unknown where a score is known, error."""
    scored = any(row.unlike is not None for row in rows)
    cells = (
        [row.path, row.label, *_shares(row, classes, ".6f"), *_score(row)[: 2 * scored], row.error]
        for row in rows
    )
    write_csv(file, ["path", "label", *classes, *(("unlike", "unknown") if scored else ()), "error"], cells)


def _score(row: Row) -> tuple[str, str]:
    return ("", "") if row.unlike is None else (f"{row.unlike:.4f}", "yes" if row.unknown else "no")


def _shares(row: Row, classes: Sequence[str], form: str) -> list[str]:
    return [format(share, form) for share in row.probabilities] or [""] * len(classes)


def prediction_table(rows: Sequence[Row], most: int = 20) -> Iterator[str]:
    """Lines for the screen: path, label, probability or error; the first `most` photos."""
    names = [printable(row.path) for row in rows[:most]]
    width = max(map(len, names), default=0)
    for name, row in zip(names, rows, strict=False):
        doubt = f"  probably none of the classes (unlike {row.unlike:.3f})" if row.unknown else ""
        yield f"{name:<{width}}  " + (row.error or f"{row.label:<12} {max(row.probabilities):6.1%}{doubt}")
    if len(rows) > most:
        yield f"… and {len(rows) - most} more"

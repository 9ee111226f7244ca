"""Names of the columns of a table that has one for each class."""

from __future__ import annotations

from collections.abc import Sequence

FOLD, TEACHER_PHOTOS = "teacher:fold", "teacher:photos"  # see `data.soft_labels`
RESERVED = ("path", "label", "unlike", "unknown", "error", FOLD, TEACHER_PHOTOS)  # not those of a class


def class_columns(class_names: Sequence[str]) -> list[str]:
    """Return the names of the classes' columns, no two of them the same.

    A class whose name is that of another column has the column `class:NAME`.

    >>> class_columns(["daisy", "unknown"])
    ['daisy', 'class:unknown']
    """
    columns = {name: name for name in class_names if name not in RESERVED}
    for name in class_names:
        if name in RESERVED:
            column = f"class:{name}"
            while column in columns:  # a class may be called that
                column = f"class:{column}"
            columns[name] = column
    return [columns[name] for name in class_names]

"""The folder of a run: reading back its settings, its split and its photos."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv
from flowers_pl.core.names import KEY, SPLIT
from flowers_pl.core.text import printable
from flowers_pl.data.decoding import UnreadablePhoto, read_photo
from flowers_pl.data.split import Placed
from flowers_pl.training.checkpoint_files import read_checkpoint

log = logging.getLogger(__name__)


def settings_of(ckpt: Path, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the data settings that a checkpoint was trained with, with its very split where that is there.

    A split names its photos, so a list of photos to exclude is then not needed.

    Args:
        ckpt: the checkpoint.
        facts: `checkpoint["flowers_pl"]`, where it has been read already.
    """
    data = dict((facts or read_checkpoint(ckpt)[KEY])["data"])
    split = ckpt.parent / SPLIT
    return data | ({"split": str(split), "exclude": None} if split.is_file() else {})


def split_of(ckpt: Path) -> list[Placed]:
    """Return the split of a run.

    Raises:
        FlowersError: there is none.
    """
    file = ckpt.parent / SPLIT
    if not file.is_file():
        raise FlowersError(
            f"{str(file)!r} is missing, so the validation photos are not known; give --images."
        )
    return [Placed(**row) for row in rows_of(file)]


def rows_of(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none where there is no file."""
    return read_csv(file) if file.is_file() else []


def readable_photos(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield paths and photos, uint8 (3, H, W), at their own sizes; log those that cannot be read any more."""
    for path in paths:
        try:
            photo = read_photo(root / path)
        except UnreadablePhoto as reason:
            log.warning("Left out: %s (%s).", printable(path), reason)
            continue
        yield path, photo

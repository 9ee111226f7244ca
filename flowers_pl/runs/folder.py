"""The folder of a run: reading back its settings, its split and its photos."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import read_csv
from flowers_pl.core.names import KEY, SPLIT
from flowers_pl.core.text import nfc, printable
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import UnreadablePhoto, read_photo
from flowers_pl.data.folder import TRAIN, VAL
from flowers_pl.data.packed import packed_photo
from flowers_pl.data.split import HEADER, Placed
from flowers_pl.packs.roots import find_pack
from flowers_pl.training.checkpoint_files import read_checkpoint, unusable

log = logging.getLogger(__name__)


def settings_of(ckpt: Path, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the data settings that a checkpoint was trained with, with its very split where that is there.

    A split names its photos, so a list of photos to exclude and a review are then not needed.

    Args:
        ckpt: the checkpoint.
        facts: `checkpoint["flowers_pl"]`, where it has been read already.
    """
    data = dict((facts or read_checkpoint(ckpt)[KEY])["data"])
    if unknown := sorted(data.keys() - signature(FlowersDataModule).parameters.keys()):
        raise unusable(ckpt, f"{KEY}.data.{unknown[0]} is not known")
    split = ckpt.parent / SPLIT
    return data | ({"split": str(split), "exclude": None, "review": None} if split.is_file() else {})


def split_of(ckpt: Path) -> list[Placed]:
    """Return the split of a run.

    Raises:
        FlowersError: there is none, or it is not of this run.
    """
    file = ckpt.parent / SPLIT
    if not file.is_file():
        raise FlowersError(
            f"{str(file)!r} is missing, so the validation photos are not known; give --images."
        )
    placed = [Placed(*(row[name] for name in HEADER)) for row in rows_of(file, HEADER)]
    classes = read_checkpoint(ckpt)[KEY]["classes"]
    for column, known, cells in (
        ("label", {nfc(name) for name in classes}, [nfc(photo.label) for photo in placed]),
        ("side", {TRAIN, VAL}, [photo.side for photo in placed]),
    ):
        if unknown := sorted(set(cells) - known):
            raise _not_as_written(file, f"{column} {unknown[0]!r}")
    names = {nfc(name): name for name in classes}
    return [photo._replace(label=names[nfc(photo.label)]) for photo in placed]


def rows_of(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table that a run wrote; none where there is no file.

    Args:
        file: the table.
        columns: those that it must have.

    Raises:
        FlowersError: it cannot be read, or is not such a table.
    """
    try:
        return read_csv(file, columns) if file.is_file() else []
    except (OSError, csv.Error, LookupError, UnicodeError) as error:
        why = reason_of(error) if not isinstance(error, LookupError) else f"no column {error.args[0]!r}"
        raise _not_as_written(file, why) from error


def _not_as_written(file: Path, why: str) -> FlowersError:
    return FlowersError(f"{str(file)!r} is not as the run wrote it ({why}); restore it or move it away.")


def any_there(root: Path, paths: Iterable[str]) -> bool:
    """Return whether a root has any of some photos; False, with a warning, where it cannot be reached."""
    try:
        pack = find_pack(root)
    except FlowersError as error:
        log.warning("%s", error)
        return False
    return any((root / path).is_file() if pack is None else path in pack.row_of for path in paths)


def readable_photos(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield paths and photos, uint8 (3, H, W), at their own sizes; log those that cannot be read any more.

    Photos of a pack have the size that it keeps.
    """
    pack = find_pack(root)
    for path in paths:
        try:
            photo = read_photo(root / path if pack is None else packed_photo(pack, path))
        except UnreadablePhoto as reason:
            log.warning("Left out: %s (%s).", printable(path), reason)
            continue
        yield path, photo

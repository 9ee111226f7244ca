"""The list of photos to leave out, which `audit --write` writes and `--data.exclude` takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv, reading_table, write_csv
from flowers_pl.core.text import nfc, printable
from flowers_pl.data.cache import DecodedPhotos
from flowers_pl.data.folder import EXCLUDED, NAMED, LeftOut

log = logging.getLogger(__name__)
T = TypeVar("T")


def write_exclusions(file: str | os.PathLike[str], listed: Iterable[LeftOut]) -> None:
    """Write the list that `read_exclusions` reads, and make its folder."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_csv(file, ("path", "reason"), (entry[:2] for entry in listed))


def read_exclusions(file: str | os.PathLike[str]) -> dict[str, str]:
    """Read the paths on a list, each with its reason, which may be empty.

    Args:
        file: CSV with the columns path and, optionally, reason; `left_out.csv` of a run will do.

    Raises:
        FlowersError: it is missing, or not such a list.
    """
    advice = "give a list that 'audit --write' wrote"
    columns = ", or a CSV file with the columns path and reason"
    with reading_table("--data.exclude", file, advice, advice + columns):
        rows = read_csv(file, ["path"])
    return {row["path"].removeprefix("./"): row.get("reason", "") for row in rows if row["path"]}


def match_names(listed: Mapping[str, T], known: Iterable[str]) -> dict[str, T]:
    """Spell listed paths as the folder does; other systems may compose letters and marks differently.

    Args:
        listed: from the paths of a table to anything.
        known: the paths in the folder.
    """
    spelled, composed = set(known), {}
    for path in spelled:
        composed[nfc(path)] = path
    return {path if path in spelled else composed.get(nfc(path), path): listed[path] for path in listed}


def leave_out(
    decoded: DecodedPhotos, file: str | os.PathLike[str] | None
) -> tuple[DecodedPhotos, list[LeftOut]]:
    """Divide the photos into those that take part and those on a list.

    Args:
        decoded: all of the folder.
        file: the list; None for none.

    Returns:
        The photos that take part, and those on the list, readable or not, with the reason.

    Raises:
        FlowersError: the list cannot be read, or names no photo of the folder: it was written for another.
    """
    if file is None:
        return decoded, []
    known = [photo.path for photo in decoded.photos] + [entry.path for entry in decoded.left_out]
    listed = match_names(read_exclusions(file), known)
    unknown = sorted(listed.keys() - set(known))
    if listed and len(unknown) == len(listed):
        raise FlowersError(
            f"--data.exclude: none of the {len(listed)} photos that {str(file)!r} names is below --data.root;"
            " give the list that was written for this folder, with paths relative to it."
        )
    if unknown:
        log.warning(
            "--data.exclude: %d of the %d photos that %s names are not below --data.root: %s%s.",
            len(unknown), len(listed), printable(str(file)), printable(", ".join(unknown[:NAMED])),
            ", …" if len(unknown) > NAMED else "",
        )  # fmt: skip
    excluded = [
        LeftOut(path, f"is on the list {Path(file).name}: {listed[path]}".removesuffix(": "), EXCLUDED)
        for path in known
        if path in listed
    ]
    return decoded.without(listed), excluded

"""Files and folders written whole or not at all, and tables that are safe in a spreadsheet."""

from __future__ import annotations

import codecs
import csv
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.text import escape_bytes, unescape_bytes

log = logging.getLogger(__name__)
INCAPABLE = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.ENOLCK)
"""Errors of file systems, many of them on a network, that lack a feature."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DELIMITERS = ",;\t"  # a spreadsheet saves "CSV" with its country's
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 (spreadsheets take the wide ones too)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path beside `file` to write to; what is written there takes the place of `file` at the end.

    At every moment the old or the new file is there whole: the new one is on the disk before it is renamed.
    After an error the old file is as it was.

    Raises:
        OSError: the folder cannot be made, or the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.stem}-", suffix=file.suffix, dir=file.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        sync_file(unfinished)
        with suppress(PermissionError):  # a file system without permissions
            unfinished.chmod(0o666 & ~_umask())
        os.replace(unfinished, file)
        sync_file(file.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to fill; it takes the place of `folder`, as a whole, at the end.

    Raises:
        OSError: it cannot be made, filled or renamed; the old folder is as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        unfinished = Path(scratch, "new")
        unfinished.mkdir()
        yield unfinished
        old = Path(scratch, "old")
        if folder.exists():
            folder.rename(old)
        try:
            unfinished.rename(folder)
        except OSError:
            with suppress(OSError):
                old.rename(folder)
            raise


def replace_by_copy(source: Path, file: Path) -> None:
    """Let `file` be what `source` is now: a hard link to it, or a copy where the file system has no links.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    unfinished = file.with_name(f".{file.stem}-{os.getpid()}{file.suffix}")
    try:
        unfinished.unlink(missing_ok=True)
        try:
            os.link(source, unfinished)
        except OSError:
            shutil.copyfile(source, unfinished)
            sync_file(unfinished)
        os.replace(unfinished, file)
        sync_file(file.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_file(path: Path) -> None:
    """Bring what has been written to a file, or the names in a folder, to the disk, if it can be done."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (*INCAPABLE, errno.EACCES, errno.EPERM):  # a folder that cannot be listed
            raise
        warn_incapable("bring files to the disk at once, so a power failure may lose the newest", error)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits; "" where it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def warn_incapable(what: str, error: OSError) -> None:
    """Say, once in a process, that a file system cannot do something, and that the program goes on."""
    warn_once("A file system cannot %s (%s).", what, reason_of(error))


@cache
def warn_once(message: str, *args: str) -> None:
    """Log a warning, once in a process."""
    log.warning(message, *args)


def write_csv(file: str | os.PathLike[str], header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table that `read_csv` takes back and that is safe in a spreadsheet.

    The file is UTF-8; bytes of names that are not, and controls, are written as `core.text.escape_bytes`
    does. A text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP, "CSV
    Injection"). The table takes the place of an older one as a whole.
    """
    table = [[csv_text(cell) for cell in row] for row in (header, *rows)]
    returns = any("\r" in str(cell) for row in table for cell in row)  # quoted from Python 3.13 on only
    path = Path(os.path.realpath(file))
    made = replacing(path) if path.is_file() or not path.exists() else nullcontext(path)  # a device, a pipe
    with made as whole, open(whole, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL, lineterminator="\n")
        writer.writerows(table)


def read_csv(file: str | os.PathLike[str], columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """Read the rows of a table that `write_csv` wrote, or a spreadsheet that saved it again.

    A byte-order mark, UTF-16, semicolons or tabs in place of commas, and a first line such as "sep=;" are
    recognised. A missing cell is empty; rows of nothing but empty cells are skipped.

    Args:
        file: the table.
        columns: those that it must have.

    Raises:
        LookupError: it lacks a column, which the error names.
        OSError, csv.Error, UnicodeError: it cannot be read, or is no table.
    """
    content = Path(file).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig", "strict" if wide else "surrogateescape")
    hint = re.match(r'"?sep=(.)"?\r?\n', text)
    lines = text[hint.end() if hint else 0 :]
    lacking: list[list[str]] = []
    for delimiter in [hint[1]] if hint else DELIMITERS:
        reader = csv.DictReader(io.StringIO(lines, newline=""), restval="", delimiter=delimiter)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        missing = sorted(set(columns) - set(reader.fieldnames))
        if not missing:
            break
        lacking.append(missing)
    else:
        raise LookupError(min(lacking, key=len)[0])  # with the delimiter that it seems to have
    rows = [{name: cell for name, cell in row.items() if name is not None} for row in reader]
    return [
        {_unquoted(name): _unquoted(cell) for name, cell in row.items()} for row in rows if any(row.values())
    ]


@contextmanager
def reading_table(
    option: str, file: str | os.PathLike[str], advice: str, without_column: str | None = None
) -> Iterator[None]:
    """Make one sentence of what `read_csv` raises about a table that a user has named.

    Args:
        option: that named it.
        file: the table.
        advice: what to do; the end of the sentence.
        without_column: what to do where it lacks a column; default `advice`.

    Raises:
        FlowersError: reading failed.
    """
    try:
        yield
    except LookupError as missing:
        way_out = without_column or advice
        raise FlowersError(
            f"{option}: {str(file)!r} has no column {missing.args[0]!r}; {way_out}."
        ) from missing
    except (OSError, csv.Error, UnicodeError) as error:
        raise FlowersError(
            f"{option}: {str(file)!r} cannot be read ({reason_of(error)}); {advice}."
        ) from error


def csv_text(cell: object) -> object:
    """Return what `write_csv` writes for a cell, before the quotes that commas, quotes and breaks need."""
    if not isinstance(cell, str):
        return cell
    return ("'" if _is_formula(cell) else "") + escape_bytes(cell)


def _is_formula(cell: str) -> bool:
    return cell.lstrip("'").startswith(FORMULA)


def _unquoted(cell: str) -> str:
    return unescape_bytes(cell[1:] if cell.startswith("'") and _is_formula(cell) else cell)


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all; bytes of names that are not UTF-8 become escapes.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(_each_text(content, escape_bytes), indent=2), encoding="utf-8")


def read_json(file: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        OSError, ValueError: it cannot be read, or is no JSON.
    """
    return _each_text(json.loads(file.read_text(encoding="utf-8")), unescape_bytes)


def _each_text(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    if isinstance(content, dict):
        return {change(key): _each_text(value, change) for key, value in content.items()}
    return [_each_text(item, change) for item in content] if isinstance(content, (list, tuple)) else content

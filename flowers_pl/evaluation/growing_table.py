"""A table that grows beside its place, and goes on where a killed process left it."""

from __future__ import annotations

import csv
import glob
import io
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import csv_text, read_json, sync_file, write_json
from flowers_pl.core.locks import take

SAVE_EVERY = 5.0  # seconds of work that a kill costs at most


class Progress(NamedTuple):
    """How far a table has come.

    Args:
        rows: in it, without the header.
        bytes: that they and the header take.
        marked: rows among them that the writer counts.
    """

    rows: int = 0
    bytes: int = 0
    marked: int = 0


class GrowingTable:
    r"""A CSV file as `write_csv` writes it, row by row, whose memory does not grow with it.

    Rows go to `.FILE.partial`. Every few seconds they are brought to the disk, and `.FILE.partial.json` notes
    how many there are. What a killed process wrote after that is dropped by the next one. At the end
    the partial file takes the place of the table.

    Args:
        file: the table.
        header: its columns.
        origin: what decides the rows, by the name that the user knows it by.
        quoted: whether all cells are quoted, as `write_csv` does where one holds a carriage return.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "x.csv")
    >>> for resume in (False, True):
    ...     table = GrowingTable(file, ["path"], {"--ckpt_path": "a1b2"})
    ...     table.begin(resume)
    ...     table.add([[f"{table.done.rows}.jpg"]])
    ...     table.close()
    >>> table = GrowingTable(file, ["path"], {"--ckpt_path": "a1b2"})
    >>> table.begin(resume=True)
    >>> table.finish()
    >>> file.read_text()
    'path\n0.jpg\n1.jpg\n'
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        header: Sequence[str],
        origin: Mapping[str, str],
        quoted: bool = False,
    ) -> None:
        self.file = Path(os.path.realpath(file))
        self.partial = self.file.with_name(f".{self.file.name}.partial")  # hidden: no photo of its folder
        self.header, self.origin, self.quoted = header, dict(origin), quoted
        self.done = Progress()
        self._note = self.partial.with_name(f"{self.partial.name}.json")
        self._stream: BinaryIO | None = None
        self._saved = 0.0

    @contextmanager
    def growing(self, resume: bool) -> Iterator[None]:
        """Let rows be added; put the table in its place at the end, or after an error leave it for a resume.

        Raises:
            FlowersError: as `begin` does.
        """
        try:
            self.begin(resume)
            yield
            self.finish()
        finally:
            self.close()

    def begin(self, resume: bool) -> None:
        """Open the table, after the rows that another process has left if it is to be resumed.

        Raises:
            FlowersError: the rows that are there were not asked for, were made of something else, or another
                process is writing them; or the table's place is taken by what is no file.
        """
        if self.file.exists() and not self.file.is_file():
            raise FlowersError(f"--out: {str(self.file)!r} is not a file; give the path of one.")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        stream = open(self.partial, "a+b")  # noqa: SIM115 (closed by `close`)
        try:
            self._lock(stream)
            for old in self.file.parent.glob(f".{glob.escape(self._note.stem)}-*{self._note.suffix}"):
                old.unlink(missing_ok=True)  # a process was killed while it wrote its note
            self.done = self._left_over(resume)
            stream.seek(self.done.bytes)
            stream.truncate()
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        if not self.done.bytes:
            stream.write(self._encoded([self.header]))
            self.done = Progress(bytes=stream.tell())
        self.save()

    def _lock(self, stream: BinaryIO) -> None:
        """Keep other processes out for as long as this one lives.

        Raises:
            FlowersError: another process writes the table, or has just finished it.
        """
        handle = stream.fileno()
        try:
            alone = take(handle) and os.path.samestat(os.stat(self.partial), os.fstat(handle))
        except FileNotFoundError:
            alone = False
        if not alone:
            raise FlowersError(
                f"{str(self.file)!r} is being written by another process; wait for its end or choose another"
                " file by --out."
            )

    def _left_over(self, resume: bool) -> Progress:
        """Return how far another process has come."""
        way_out = f"or remove {str(self.partial)!r} to begin with the first photo"
        written = self.partial.stat().st_size
        if not written:  # it was made just now
            return Progress()
        try:
            note = read_json(self._note)
            done, origin = Progress(*map(int, note["done"])), dict(note["origin"])
            if not 0 <= done.bytes <= written:
                raise ValueError("it is shorter than it was")
        except FileNotFoundError:  # nothing was saved
            return Progress()
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise FlowersError(
                f"{str(self._note)!r} does not say how far {str(self.partial)!r} has come ({error}); remove"
                " both to begin with the first photo."
            ) from error
        if not done.rows:
            return Progress()
        if not resume:
            raise FlowersError(
                f"{str(self.partial)!r} has {done.rows:,} rows of a run that did not end; add --resume to go"
                f" on there, {way_out}."
            )
        for name, value in self.origin.items():
            if origin.get(name) != value:
                raise FlowersError(
                    f"--resume: {str(self.partial)!r} was begun with another {name}; give the same again,"
                    f" {way_out}."
                )
        return done

    def add(self, rows: Iterable[Sequence[object]], marked: int = 0) -> None:
        """Append rows, `marked` of which the caller counts; save them if it is time."""
        assert self._stream is not None
        rows = list(rows)
        self._stream.write(self._encoded(rows))
        self._stream.flush()
        # One assignment, so that a signal finds numbers that belong together.
        self.done = Progress(self.done.rows + len(rows), self._stream.tell(), self.done.marked + marked)
        if time.monotonic() - self._saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Bring the rows to the disk, and note how many there are."""
        assert self._stream is not None
        done = self.done
        self._stream.flush()
        sync_file(self.partial)
        write_json(self._note, {"done": list(done), "origin": self.origin})
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Put the table in its place, whole."""
        self.save()
        os.replace(self.partial, self.file)
        self._note.unlink(missing_ok=True)
        sync_file(self.file.parent)
        self._end()

    def close(self) -> None:
        """Save what there is for a resume; leave nothing where there is no row. Do nothing after `finish`."""
        if self._stream is None:
            return
        with suppress(OSError):  # the disk may be full, which is why the table is closed
            self.save()
        self._end()
        if not self.done.rows:
            self.partial.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()

    def _encoded(self, rows: Iterable[Sequence[object]]) -> bytes:
        text = io.StringIO(newline="")
        for row in rows:
            cells = [csv_text(cell) for cell in row]
            every = self.quoted or any("\r" in str(cell) for cell in cells)
            writer = csv.writer(
                text, lineterminator="\n", quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
            )
            writer.writerow(cells)
        return text.getvalue().encode("utf-8")

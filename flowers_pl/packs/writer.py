"""Write the shards of a pack: ordinary tar files of about equal length."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flowers_pl.packs.index import FileEntry, shard_name


class ShardWriter:
    """Writes photos into shards, one after the other, and begins a new shard where one is full.

    Every photo is two files of a shard, `<number>.<suffix>` with its bytes and `<number>.json` with its path
    and class, which is a sample of the library webdataset.

    Args:
        folder: takes the shards.
        series: names them.
        num_bytes: of a full shard, about.
    """

    def __init__(self, folder: Path, series: str, num_bytes: int) -> None:
        self.folder, self.series, self.num_bytes = folder, series, num_bytes
        self.shards: list[FileEntry] = []
        self._stream: BinaryIO | None = None

    def add(self, number: int, suffix: str, content: bytes, facts: dict[str, str]) -> tuple[int, int]:
        """Write a photo; return the number of its shard and the offset of its bytes there.

        Args:
            number: names it inside the shard.
            suffix: of its format, without the dot.
            content: its bytes.
            facts: path and class.

        Raises:
            OSError: it cannot be written.
        """
        if self._stream is not None and self._stream.tell() + len(content) > self.num_bytes:
            self.close()
        if self._stream is None:
            self._stream = (self.folder / shard_name(self.series, len(self.shards))).open("wb")
        start = self._stream.tell() + tarfile.BLOCKSIZE  # a header is one block in this format
        for name, part in ((suffix, content), ("json", json.dumps(facts).encode())):
            member = tarfile.TarInfo(f"{number:012d}.{name}")
            member.size = len(part)
            self._stream.write(member.tobuf(tarfile.USTAR_FORMAT))
            self._stream.write(part + bytes(-len(part) % tarfile.BLOCKSIZE))
        return len(self.shards), start

    def close(self) -> None:
        """End the last shard."""
        if self._stream is None:
            return
        self._stream.write(bytes(2 * tarfile.BLOCKSIZE))
        self._stream.close()
        self._stream = None
        self.shards.append(entry_of(self.folder / shard_name(self.series, len(self.shards))))


def entry_of(file: Path) -> FileEntry:
    """Return length and digest of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(file.name, file.stat().st_size, digest)


def npy_bytes(pixels: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    content = io.BytesIO()
    np.save(content, pixels)
    return content.getvalue()


def write_table(file: Path, table: np.ndarray) -> FileEntry:
    """Write a structured array, and return the file's entry."""
    np.save(file, table)
    return entry_of(file)

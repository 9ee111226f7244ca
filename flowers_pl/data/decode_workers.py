"""Worker processes that decode photos, store their pixels, and take their fingerprints."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.signals import leave_signals_to_parent, signals_held
from flowers_pl.core.system import available_cores
from flowers_pl.data.decoding import UnreadablePhoto, read_photo, resize_photo
from flowers_pl.data.duplicates import Fingerprint, fingerprint
from flowers_pl.data.folder import Photo
from flowers_pl.data.formats import get_limits, set_limits
from flowers_pl.data.sources import read_bytes

log = logging.getLogger(__name__)
AT_ONCE = 4096  # files whose digests are waited for together
CHUNK = 16  # photos that a worker decodes before it reports


class Unreadable(NamedTuple):
    """Why a photo cannot be read.

    Args:
        reason: for the user.
        may_pass: whether the same bytes may be read another time, see `UnreadablePhoto`.
    """

    reason: str
    may_pass: bool


Write = Callable[[int, np.ndarray], None]
Decoded = list[tuple[bytes, Fingerprint | Unreadable | OSError]]


def content_digest(data: bytes) -> bytes:
    """Return a digest, of 16 bytes, of the bytes of a file."""
    return hashlib.blake2b(data, digest_size=16).digest()


def digest_files(root: Path, photos: Sequence[Photo], workers: int | None) -> list[bytes]:
    """Return the digests of the bytes of photos' files, b"" for those that cannot be read.

    Args:
        root: the folder of class folders.
        photos: as `list_photos` found them there.
        workers: threads; None for as many as there are cores.
    """

    def digest(photo: Photo) -> bytes:
        try:
            return content_digest(read_bytes(root / photo.path))
        except Exception:  # `read_photo` says what is wrong
            return b""

    threads = ThreadPoolExecutor(workers or available_cores(), thread_name_prefix="digest")
    try:
        groups = (photos[start : start + AT_ONCE] for start in range(0, len(photos), AT_ONCE))
        digests = (found for group in groups for found in threads.map(digest, group))
        return list(tqdm(digests, "Comparing files", len(photos), unit="file", leave=False, disable=None))
    finally:
        threads.shutdown(cancel_futures=True)


def decode_rows(
    root: Path, photos: Sequence[Photo], size: int, write: Write | None, first: int, workers: int | None
) -> Iterator[tuple[bytes, Fingerprint | Unreadable]]:
    """Decode photos in worker processes.

    Args:
        root: the folder of class folders.
        photos: those to decode.
        size: pixels a side.
        write: stores the pixels of a row, uint8 (size, size, 3), from any process; None to keep none.
        first: the row of the first photo; the others follow it.
        workers: processes; None for as many as there are cores, 0 for this one.

    Yields:
        Of each photo in turn: the digest of its file's bytes, and its fingerprint or why it cannot be read.

    Raises:
        FlowersError: a worker was killed.
        OSError: pixels cannot be written.
    """
    decoder = _Decoder(root, photos, size, write, first)
    if workers is None:
        workers = min(available_cores(), len(decoder) // 4)
    before = set(multiprocessing.active_children())
    try:
        chunks = _start(decoder, workers)
    except OSError as error:  # no semaphores, for example, where there is no /dev/shm
        log.warning("No worker processes can be started (%s); one process decodes.", reason_of(error))
        chunks = _start(decoder, 0)
    processes = set(multiprocessing.active_children()) - before
    bar = tqdm(total=len(photos), desc="Decoding photos once", unit="photo", leave=False, disable=None)
    try:
        with bar:
            for chunk in chunks:
                for digest, found in chunk:
                    if isinstance(found, OSError):
                        raise found
                    yield digest, found
                bar.update(len(chunk))
    except RuntimeError as error:
        if not any(process.exitcode for process in processes):
            raise
        raise FlowersError(
            "A process that decoded photos was killed, perhaps because memory ran out; give a smaller number"
            " of workers (--data.workers, or --workers of pack), or 0 to decode in the main process."
        ) from error


def _start(decoder: _Decoder, workers: int) -> Iterator[Decoded]:
    if workers:
        multiprocessing.Lock()  # an error here leaves no loader half made
    loader = DataLoader(
        decoder,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=leave_signals_to_parent,
    )
    with signals_held():
        return iter(loader)


class _Decoder(Dataset[Decoded]):
    """Decodes CHUNK photos an item; see `decode_rows`."""

    def __init__(
        self, root: Path, photos: Sequence[Photo], size: int, write: Write | None, first: int
    ) -> None:
        self.root, self.photos, self.size, self.write, self.first = root, photos, size, write, first
        self.limits = get_limits()  # a worker that is not forked does not have them

    def __len__(self) -> int:
        return -(-len(self.photos) // CHUNK)

    def __getitem__(self, chunk: int) -> Decoded:
        set_limits(self.limits)
        start, decoded = chunk * CHUNK, Decoded()
        for row, one in enumerate(self.photos[start : start + CHUNK], self.first + start):
            source: Path | bytes = self.root / one.path
            digest = b""
            with suppress(Exception):  # `read_photo` says what is wrong
                source = read_bytes(source)
                digest = content_digest(source)
            try:
                photo = read_photo(source)
            except UnreadablePhoto as reason:
                decoded.append((digest, Unreadable(str(reason), reason.may_pass)))
                continue
            try:
                if self.write is not None:
                    self.write(row, resize_photo(photo, self.size).permute(1, 2, 0).numpy())
                decoded.append((digest, fingerprint(photo)))
            except OSError as error:  # which would lose its number on the way
                decoded.append((digest, error))
        return decoded


def _unchanged(chunk: Decoded) -> Decoded:
    """Keep worker results from becoming tensors, which take a file descriptor each, and half of the time."""
    return chunk

"""Worker processes that decode photos, straight into a memory map, and take their fingerprints."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
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

log = logging.getLogger(__name__)
CHUNK = 16  # photos that a worker decodes before it reports


class Unreadable(NamedTuple):
    """Why a photo cannot be read.

    Args:
        reason: for the user.
        may_pass: whether the same bytes may be read another time, see `UnreadablePhoto`.
    """

    reason: str
    may_pass: bool


Decoded = list[tuple[int, Fingerprint | Unreadable]]


def decode_rows(
    root: Path,
    photos: Sequence[Photo],
    rows: Sequence[int],
    size: int,
    pixels: Path | None,
    workers: int | None,
) -> Iterator[tuple[int, Fingerprint | Unreadable]]:
    """Decode photos in worker processes; yield the fingerprint of each, or why it cannot be read.

    Args:
        root: the folder of class folders.
        photos: as `list_photos` found them there.
        rows: which of them to decode.
        size: pixels a side.
        pixels: a file, uint8 (len(photos), size, size, 3), that takes their pixels; None for none.
        workers: processes; None for as many as there are cores, 0 for this one.

    Raises:
        FlowersError: a worker was killed.
    """
    decoder = _Decoder(root, photos, rows, size, pixels)
    if workers is None:
        workers = min(available_cores(), len(decoder) // 4)
    before = set(multiprocessing.active_children())
    try:
        chunks = _start(decoder, workers)
    except OSError as error:  # no semaphores, for example, where there is no /dev/shm
        log.warning("No worker processes can be started (%s); one process decodes.", reason_of(error))
        chunks = _start(decoder, 0)
    processes = set(multiprocessing.active_children()) - before
    bar = tqdm(total=len(rows), desc="Decoding photos once", unit="photo", leave=False, disable=None)
    try:
        with bar:
            for chunk in chunks:
                yield from chunk
                bar.update(len(chunk))
    except RuntimeError as error:
        if not any(process.exitcode for process in processes):
            raise
        raise FlowersError(
            "A process that decoded photos was killed, perhaps because memory ran out; give a smaller number"
            " of --data.workers, or 0 to decode in the main process."
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
        self, root: Path, photos: Sequence[Photo], rows: Sequence[int], size: int, pixels: Path | None
    ) -> None:
        self.root, self.photos, self.rows, self.size, self.pixels = root, photos, rows, size, pixels
        self.limits = get_limits()  # a worker that is not forked does not have them

    def __len__(self) -> int:
        return -(-len(self.rows) // CHUNK)

    def __getitem__(self, chunk: int) -> Decoded:
        set_limits(self.limits)
        pixels = None if self.pixels is None else np.load(self.pixels, mmap_mode="r+")
        decoded: Decoded = []
        for row in self.rows[chunk * CHUNK : (chunk + 1) * CHUNK]:
            try:
                photo = read_photo(self.root / self.photos[row].path)
            except UnreadablePhoto as reason:
                decoded.append((row, Unreadable(str(reason), reason.may_pass)))
                continue
            if pixels is not None:
                pixels[row] = resize_photo(photo, self.size).permute(1, 2, 0).numpy()
            decoded.append((row, fingerprint(photo)))
        return decoded


def _unchanged(chunk: Decoded) -> Decoded:
    """Keep worker results from becoming tensors, which take a file descriptor each, and half of the time."""
    return chunk

"""Small pictures for the audit's page, as large and as good as the room for all of them allows."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from flowers_pl.data.decoding import UnreadablePhoto, read_photo, resize_photo

SAMPLE = 24  # pictures of each kind that the choice of a size begins with


class Rung(NamedTuple):
    """A choice of sizes.

    Args:
        side: pixels of the longer side of a photo in question.
        quality: of WebP, 0 to 100.
        small_side: pixels of the longer side of every other picture; 0 for no others.
        small_quality: likewise.
        neighbours: similar photos of each of two classes beside one in question.
    """

    side: int
    quality: int
    small_side: int
    small_quality: int
    neighbours: int


LADDER = (
    Rung(320, 75, 160, 60, 3),
    Rung(320, 60, 128, 50, 3),
    Rung(320, 50, 112, 50, 2),
    Rung(256, 60, 112, 50, 2),
    Rung(256, 55, 96, 50, 1),
    Rung(224, 50, 96, 50, 1),
    Rung(192, 40, 80, 40, 1),
    Rung(160, 40, 0, 0, 0),
    Rung(96, 30, 0, 0, 0),
)
"""Of 40 photos WebP takes 11.0, 9.4 and 8.4 KB at 320 pixels and quality 75, 60 and 50, 6.4 KB at 256 and
60, 1.1 KB at 96 and 50; JPEG at 320 and 75 takes 15.6 KB."""


def make_pictures(
    root: Path, asked: Sequence[str], others: Callable[[int], Sequence[str]], room: int
) -> tuple[dict[str, str], Rung]:
    """Make the pictures of a page by the first rung of `LADDER` at which all of them fit.

    Args:
        root: the folder of the photos.
        asked: paths of the photos in question.
        others: returns the paths of the other photos to show, given `Rung.neighbours`.
        room: bytes that all pictures may take together.

    Returns:
        WebP in base64 by path, for the photos that can be read, and the rung.
    """
    large = set(asked)
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def encode(paths: Sequence[str], side: int, quality: int) -> dict[str, str]:
            files = pool.map(lambda path: _encode(root / path, side, quality), paths)
            return {path: text for path, text in zip(paths, files, strict=True) if text}

        for rung in LADDER:
            small = [path for path in dict.fromkeys(others(rung.neighbours)) if path not in large]
            small = small if rung.small_side else []
            kinds = ((asked, rung.side, rung.quality), (small, rung.small_side, rung.small_quality))
            last = rung is LADDER[-1]
            if not last and sum(_estimate(encode, *kind) for kind in kinds) > room:
                continue
            pictures = {path: text for kind in kinds for path, text in encode(*kind).items()}
            if last or sum(map(len, pictures.values())) <= room:
                break
    return pictures, rung


def _estimate(
    encode: Callable[[Sequence[str], int, int], dict[str, str]], paths: Sequence[str], side: int, quality: int
) -> float:
    """Estimate the bytes of all pictures from a few that are evenly spread."""
    sample = paths[:: max(1, len(paths) // SAMPLE)]
    made = encode(sample, side, quality)
    return sum(map(len, made.values())) / max(1, len(sample)) * len(paths)


def _encode(file: Path, side: int, quality: int) -> str:
    """Return a small copy of a photo, WebP in base64, or "" where it cannot be read."""
    try:
        photo = read_photo(file)
    except UnreadablePhoto:
        return ""
    height, width = photo.shape[1:]
    scale = min(1.0, side / max(height, width))
    small = resize_photo(photo, (max(1, round(height * scale)), max(1, round(width * scale))))
    stream = BytesIO()
    Image.fromarray(small.permute(1, 2, 0).numpy()).save(stream, "WEBP", quality=quality, method=2)
    return base64.b64encode(stream.getvalue()).decode()

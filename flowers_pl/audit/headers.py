"""Headers of photos: format, size, mode, orientation, and whether the file's name fits."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import NamedTuple

from PIL import Image

from flowers_pl.data.decoding import UnreadablePhoto, open_picture, orientation_of

SWAPPED = (5, 6, 7, 8)  # EXIF orientations that turn a photo on its side


class Header(NamedTuple):
    """The header of a picture.

    Args:
        format: as Pillow names it, "JPEG" for one.
        width: pixels, of the upright photo.
        height: likewise.
        mode: as Pillow names it, "RGB", "L", "P", "RGBA", "CMYK", "I;16" …
        orientation: of EXIF, 1 to 8; 1 where there is none or an invalid one.
        animated: whether there is more than one frame, of which only the first counts.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    animated: bool


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a file that `decoding.read_photo` has read, without decoding pixels.

    Raises:
        UnreadablePhoto: the file was removed or changed since.
    """
    try:
        with open(path, "rb") as stream, open_picture(stream) as picture:
            orientation = orientation_of(picture)
            orientation = orientation if orientation in range(1, 9) else 1
            width, height = picture.size if orientation not in SWAPPED else picture.size[::-1]
            animated = picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
            return Header(str(picture.format), width, height, picture.mode, orientation, animated)
    except UnreadablePhoto:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything
        raise UnreadablePhoto(f"changed during the audit: {error}") from error


def name_fault(path: str, format: str) -> str:
    """Say how a file's name misleads about its format; "" where it does not.

    Args:
        path: of the file.
        format: see `Header`.
    """
    suffix = PurePath(path).suffix.lower()
    promised = Image.registered_extensions().get(suffix)
    if promised is None:
        return f"is a {format}, but {f'{suffix} is no' if suffix else 'has no'} picture's extension"
    fits = promised == format or {promised, format} == {"JPEG", "MPO"}  # an MPO is a JPEG with more behind it
    return "" if fits else f"is a {format}, but is called {suffix}"

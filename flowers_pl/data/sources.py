"""Read the bytes of a photo from what a user has: a path, an open file, bytes; or take a decoded picture."""

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from flowers_pl.core.errors import reason_of
from flowers_pl.data.formats import UnreadablePhoto, get_limits

PhotoSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray
"""A path, the bytes of a picture file, an open file, or a picture that is decoded already."""

_BLOCK = 1 << 20


def read_bytes(source: str | os.PathLike[str] | bytes | BinaryIO) -> bytes:
    """Return the bytes of a picture file.

    Raises:
        UnreadablePhoto: they cannot be read, are none or too many.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        data = _read_file(Path(source))
    elif hasattr(source, "read"):
        data = _read_stream(source)
    else:
        raise UnreadablePhoto(f"is a {type(source).__name__}, not a path, bytes, file, PIL image or array")
    if len(data) > get_limits().max_bytes:
        raise _too_many_bytes()
    if not data:
        raise UnreadablePhoto("empty file")
    return data


def picture_of(array: np.ndarray) -> Image.Image:
    """Return the picture that an array holds.

    Raises:
        UnreadablePhoto: it is not uint8, (H, W), (H, W, 3) or (H, W, 4).
    """
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_picture or not array.size:
        raise UnreadablePhoto(f"is an array of {array.dtype} {array.shape}, not of uint8 (H, W, 3) or (H, W)")
    return Image.fromarray(np.ascontiguousarray(array))


def _read_file(path: Path) -> bytes:
    """Read a regular file; opening a FIFO would block for ever, and a device may never end."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            if path.is_symlink():
                raise UnreadablePhoto("is a link to a folder, which is not followed")
            closed = "" if os.access(path, os.R_OK | os.X_OK) else " that is closed"
            raise UnreadablePhoto(f"is a folder{closed}")
        if not stat.S_ISREG(status.st_mode):
            raise UnreadablePhoto("is not a file")
        if status.st_size > get_limits().max_bytes:
            raise _too_many_bytes()
        with path.open("rb") as stream:
            return stream.read(status.st_size)  # bounded, even if the file is growing
    except OSError as error:
        raise UnreadablePhoto(_no_access(error, path), may_pass=True) from error


def _read_stream(stream: BinaryIO) -> bytes:
    """Read an open file, from its start if it can seek; pipes and sockets cannot."""
    if isinstance(stream, io.TextIOBase):
        raise UnreadablePhoto("is a file in text mode; open it with mode 'rb'")
    data = bytearray()
    try:
        if getattr(stream, "seekable", lambda: hasattr(stream, "seek"))():
            stream.seek(0)
        while len(data) <= get_limits().max_bytes and (block := stream.read(_BLOCK)):
            data += block
    except (OSError, ValueError) as error:  # a ValueError for a closed file
        raise UnreadablePhoto(f"cannot be read: {reason_of(error)}", may_pass=True) from error
    return bytes(data)


def _no_access(error: OSError, path: Path) -> str:
    """Say why the operating system did not open a file."""
    if isinstance(error, FileNotFoundError):
        return "is a link to nothing" if path.is_symlink() else "does not exist"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if error.errno == errno.ELOOP:
        return "is part of a loop of links"
    return f"cannot be read: {reason_of(error)}"


def _too_many_bytes() -> UnreadablePhoto:
    limit = get_limits().max_bytes >> 20
    return UnreadablePhoto(
        f"is larger than the limit of {limit} MiB (--data.limits.max_bytes)", may_pass=True
    )

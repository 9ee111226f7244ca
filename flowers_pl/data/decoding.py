"""Read and resize photos; nothing else in the program decodes a file.

torchvision decodes JPEGs: it took 360 us for a photo of 320 pixels where Pillow took 630. Pillow decodes
every other format, because torchvision drops alpha, gives uint16 for 16-bit PNGs and four dimensions for
GIFs, and refuses BMP and TIFF. Pillow reads the header and the EXIF orientation of all formats, because
torchvision looks for the orientation in the first APP1 segment only. Colour profiles are not applied.
"""

import errno
import os
import re
import stat
import warnings
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused: Pillow's own limit against decompression bombs."""

MAX_BYTES = 2**30
"""Files with more bytes are refused: more than `MAX_PIXELS` pixels of 16-bit RGBA take."""

MAX_SCANS = 100
"""JPEGs with more passes over the picture are refused: a few KB could keep the decoder busy for hours."""

# An allow-list: Pillow would run Ghostscript on EPS, and takes some text files for pictures in rarer formats.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM")

# EXIF orientation -> transpose first?, dimensions of (3, H, W) to flip then. EXIF 2.32, tag 0x0112.
_TURNS: dict[int, tuple[bool, list[int]]] = {
    2: (False, [2]),
    3: (False, [1, 2]),
    4: (False, [1]),
    5: (True, []),
    6: (True, [2]),
    7: (True, [1, 2]),
    8: (True, [1]),
}

_NOISY_MODULES = r"PIL\.|torchvision\.io"
_MUTE = ("ignore", None, Warning, re.compile(_NOISY_MODULES), 0)


class UnreadablePhoto(Exception):  # noqa: N818 - it is the photo that is at fault
    """A file that cannot be read as a photo; the message is a short reason, without the path."""


def read_photo(path: str | PathLike[str]) -> torch.Tensor:
    """Read a picture as a photo viewer shows it.

    EXIF orientation is applied, alpha is composited over white, animations give their first frame, 16-bit
    grey is scaled to 8 bits by 1/257 (16-bit colour keeps its upper 8 bits), and all modes become RGB.

    Args:
        path: a regular file or a link to one, in any of the formats that Pillow and this module know.

    Returns:
        uint8, (3, H, W), RGB; channels last in memory, as the decoders write them.

    Raises:
        UnreadablePhoto: for every reason that a file cannot be read; nothing else is raised, and no Python
            warning is given. (libjpeg writes a line to standard error about a corrupt but complete JPEG.)

    >>> import flowers_pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flowers_pl.draw_flower("rose", seed=0).save(f"{folder}/rose.png")
    ...     read_photo(f"{folder}/rose.png").shape
    torch.Size([3, 96, 96])
    """
    try:
        data = _read_bytes(Path(path))
        with open_picture(BytesIO(data)) as picture:
            return _decode(picture, data)
    except UnreadablePhoto:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        raise UnreadablePhoto(_damage(error, "picture")) from error


def resize_photo(photo: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Resize photos to one size, without cropping; the aspect ratio is not kept.

    The resize is antialiased bilinear in float32, rounded by `floor(x + 0.501)`: half up, with 0.501 instead
    of 0.5 so that the last bits of float32, which differ between runtimes, do not decide ties. torchvision's
    uint8 resize differs from it by one level in 16 % of the pixels. The result depends neither on the memory
    format nor on the number of threads.

    Args:
        photo: uint8, (3, H, W) or a batch (N, 3, H, W).
        size: height and width in pixels; one number for a square.

    Returns:
        uint8, (3, height, width) or (N, 3, height, width), contiguous.

    Raises:
        TypeError: `photo` is not uint8.

    >>> pair = torch.tensor([[[2, 3]], [[0, 1]], [[254, 255]]], dtype=torch.uint8)
    >>> resize_photo(pair, 1).flatten().tolist()
    [3, 1, 255]
    """
    if photo.dtype != torch.uint8:
        raise TypeError(f"resize_photo takes uint8 photos, not {photo.dtype}")
    height, width = (size, size) if isinstance(size, int) else size
    batch = photo if photo.ndim == 4 else photo[None]
    pixels = batch.to(torch.float32)  # in its own memory format: changing that takes longer
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    # A mean of values of 0 to 255 is in range. torch converts int32 three times as fast as float32.
    resized = (pixels + 0.501).to(torch.int32).to(torch.uint8).contiguous()
    return resized if photo.ndim == 4 else resized[0]


def load_photo(path: str | PathLike[str], size: int | tuple[int, int]) -> torch.Tensor:
    """Read a photo and resize it: `resize_photo(read_photo(path), size)`.

    Returns:
        uint8, (3, height, width).

    Raises:
        UnreadablePhoto: as `read_photo` does.

    >>> import flowers_pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flowers_pl.draw_flower("tulip", seed=0).save(f"{folder}/tulip.png")
    ...     load_photo(f"{folder}/tulip.png", 32).shape
    torch.Size([3, 32, 32])
    """
    return resize_photo(read_photo(path), size)


def _read_bytes(path: Path) -> bytes:
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
        if status.st_size > MAX_BYTES:
            raise UnreadablePhoto(f"is larger than the limit of {MAX_BYTES >> 20} MiB")
        with path.open("rb") as stream:
            data = stream.read(status.st_size)  # bounded, even if the file is growing
    except OSError as error:
        raise UnreadablePhoto(_no_access(error, path)) from error
    if not data:
        raise UnreadablePhoto("empty file")
    return data


def _no_access(error: OSError, path: Path) -> str:
    """Say why the operating system did not open a file."""
    if isinstance(error, FileNotFoundError):
        return "is a link to nothing" if path.is_symlink() else "does not exist"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if error.errno == errno.ELOOP:
        return "is part of a loop of links"
    return f"cannot be read: {error.strerror or error}"


def open_picture(stream: BinaryIO) -> Image.Image:
    """Read a picture's header, and refuse decompression bombs before memory is allocated.

    Raises:
        UnreadablePhoto: it is not a picture in a known format, or has too many pixels.
        Exception: of almost any kind, if the header is damaged.
    """
    limit = f"the limit of {MAX_PIXELS // 10**6} million"
    _mute_warnings()
    Image.init()
    try:
        picture = Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise UnreadablePhoto("not a picture in a known format") from error
    except Image.DecompressionBombError as error:
        raise UnreadablePhoto(f"has far more pixels than {limit}") from error
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        raise UnreadablePhoto(f"has {pixels // 10**6} million pixels, more than {limit}")
    return picture


def _mute_warnings() -> None:
    """Mute the warnings of the decoders for the whole process: `warnings.catch_warnings` is not thread-safe.

    They warn about bombs, odd metadata and, since torchvision 0.29, the deprecation of torchvision.io.
    """
    if warnings.filters[:1] != [_MUTE]:
        warnings.filterwarnings("ignore", module=_NOISY_MODULES)


def _decode(picture: Image.Image, data: bytes) -> torch.Tensor:
    """Decode a picture whose header has been read: uint8, (3, H, W)."""
    try:
        jpeg = picture.format in ("JPEG", "MPO")
        if jpeg and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
            raise UnreadablePhoto(f"has {scans} scans, more than the limit of {MAX_SCANS}")
        if jpeg and picture.mode in ("RGB", "L"):
            photo = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        else:
            if picture.format == "PNG" and b"IEND" not in data:
                raise UnreadablePhoto("truncated PNG: its end is missing")
            picture.load()
            photo = torch.from_numpy(np.array(_to_rgb(picture))).permute(2, 0, 1)
        return _turn_upright(photo, orientation_of(picture))
    except UnreadablePhoto:
        raise
    except Exception as error:
        raise UnreadablePhoto(_damage(error, str(picture.format))) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Turn a loaded picture of any mode into RGB, composited over white where it has alpha."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        raise UnreadablePhoto(f"has {kind} pixels, whose range from black to white is not defined")
    if picture.mode.startswith("I"):
        picture = _to_8_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer)
    return white


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey, of either byte order, to mode "L"; a transparent grey becomes white."""
    values = np.asarray(picture)
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if "transparency" in picture.info:
        grey[values == picture.info["transparency"]] = 255
    return Image.fromarray(grey)


def orientation_of(picture: Image.Image) -> Any:
    """Return the EXIF (or else XMP) orientation, 1 to 8; any value at all if the metadata is damaged."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata is no reason to refuse the pixels
        return 1


def _turn_upright(photo: torch.Tensor, orientation: Any) -> torch.Tensor:
    """Apply an EXIF orientation to a photo (3, H, W)."""
    transpose, flips = _TURNS.get(orientation, (False, []))
    photo = photo.transpose(1, 2) if transpose else photo
    return photo.flip(flips) if flips else photo


def _damage(error: Exception, kind: str) -> str:
    """Put a decoder's error into one short line."""
    if isinstance(error, MemoryError):
        return f"not enough memory to decode this {kind}"
    lines = str(error).splitlines() or [type(error).__name__]
    detail = re.sub(r"^decode_jpeg, .*?:\d+, ", "", lines[0])[:120]  # torchvision begins with its source file
    return f"{'truncated' if 'truncated' in detail.lower() else 'damaged'} {kind}: {detail}"

"""Open pictures: which formats are read, within which limits, and what is done before they are decoded."""

from __future__ import annotations

import importlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import printable

# An allow-list: Pillow would run Ghostscript on EPS, and takes some text files for pictures in rarer formats.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM")

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_ORIENTATION_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # where Pillow looks, besides EXIF
_MAX_TEXT = 2**20  # bytes of such a text: Pillow refuses a PNG with a larger one
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither stuffing, restart nor fill bytes
_BUFFERED = 2  # times `max_pixels`: size of a JPEG whose decoder keeps all coefficients in memory
_STREAMED = 12  # times `max_pixels`: size of a JPEG that is decoded row by row, at a reduced scale
_NOISY_MODULES = r"PIL\.|torchvision\.io"
_MUTE = ("ignore", None, Warning, re.compile(_NOISY_MODULES), 0)


@dataclass(frozen=True)
class Limits:
    """Limit what is read, against pictures that would exhaust memory or time.

    Args:
        max_pixels: pictures with more pixels are refused (the default is Pillow's limit); JPEGs are read at
            1/2, 1/4 or 1/8 of their size instead.
        max_bytes: files with more bytes are refused.
        max_scans: JPEGs with more passes over the picture are refused; a few KB could keep the decoder busy
            for hours.
    """

    max_pixels: int = 89_478_485
    max_bytes: int = 2**30
    max_scans: int = 100

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise FlowersError(f"--data.limits.{name} must be at least 1, not {value}.")


_limits = Limits()


def set_limits(limits: Limits) -> None:
    """Apply limits to everything that this process reads from now on."""
    global _limits
    _limits = limits
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow refuses twice as many by itself
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.max_pixels)


def get_limits() -> Limits:
    """Return the limits of this process."""
    return _limits


class UnreadablePhoto(Exception):  # noqa: N818 - it is the photo that is at fault
    """A file that cannot be read as a photo; the message is a short printable reason, without the path.

    Args:
        reason: the message; what is not printable is escaped.
        may_pass: whether the same bytes may be read another time: the fault is one of the system, of the
            installation or of the settings.
    """

    def __init__(self, reason: str, may_pass: bool = False) -> None:
        super().__init__(printable(reason))
        self.may_pass = may_pass


def open_picture(stream: BinaryIO) -> Image.Image:
    """Read a picture's header, and refuse decompression bombs before memory is allocated.

    Raises:
        UnreadablePhoto: it is not a picture in a known format, or has too many pixels.
        Exception: of almost any kind, if the header is damaged.
    """
    _mute_warnings()
    heif = _register_formats()
    start = stream.read(64)
    stream.seek(0)
    try:
        if start.startswith(_JPEG):  # without the limit of Image.open, because JPEGs can be reduced
            picture: Image.Image = jpeg_factory(stream)
        else:
            if start.startswith(_PNG):
                stream = BytesIO(b"".join(_without_texts(stream.read())))
            picture = Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN])
    except (UnidentifiedImageError, SyntaxError) as error:
        raise _unknown(start, heif) from error
    except Image.DecompressionBombError as error:
        raise _too_large("far more pixels") from error
    _check_size(picture, stream)
    return picture


def _too_large(number: str) -> UnreadablePhoto:
    limit = _count(_limits.max_pixels)
    return UnreadablePhoto(
        f"has {number} than the limit of {limit} (--data.limits.max_pixels)", may_pass=True
    )


def _count(pixels: int) -> str:
    return f"{pixels // 10**6} million" if pixels >= 10**6 else f"{pixels:,}"


def _check_size(picture: Image.Image, stream: BinaryIO) -> None:
    """Refuse a picture with too many pixels, but for a JPEG that can be read at a reduced scale."""
    limit, pixels = _limits.max_pixels, picture.width * picture.height
    most = limit
    if pixels > limit and isinstance(picture, JpegImageFile) and _scale(*picture.size):
        stream.seek(0)
        most = limit * (_BUFFERED if _is_buffered(stream.read(), picture.layers) else _STREAMED)
    if pixels > most:
        raise _too_large(f"{_count(pixels)} pixels, more")


def _scale(width: int, height: int) -> int:
    """Return what a size must be divided by to be within the limit, 1 to 8 as libjpeg can; 0 if by more."""
    scales = (s for s in (1, 2, 4, 8) if -(-width // s) * -(-height // s) <= _limits.max_pixels)
    return next(scales, 0)


def reduce_large(picture: Image.Image) -> bool:
    """Choose a reduced scale for a JPEG with too many pixels, before it is decoded; return whether it has."""
    scale = _scale(*picture.size)
    if scale > 1:
        picture.draft("", (max(1, picture.width // scale), max(1, picture.height // scale)))
    return scale > 1


def _segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """Yield the code of each marker of a JPEG up to its end, and the position behind the marker.

    Neither the markers of a thumbnail in the metadata count nor what follows the JPEG, such as the video of a
    motion photo.
    """
    position = 2
    while found := _MARKER.search(jpeg, position):
        position, code = found.end(), jpeg[found.end() - 1]
        if code == 0xD9:  # end of image
            return
        yield code, position
        if code not in (0x01, 0xD8):  # which have no length
            position += int.from_bytes(jpeg[position : position + 2], "big")


def _is_buffered(jpeg: bytes, num_components: int) -> bool:
    """Return whether the decoder keeps all coefficients: a scan holds a part of them only."""
    starts = [position for code, position in _segments(jpeg) if code == 0xDA]
    progressive = any(code in (0xC2, 0xC6, 0xCA, 0xCE) for code, _ in _segments(jpeg))
    return progressive or any(jpeg[start + 2] < num_components for start in starts if start + 2 < len(jpeg))


def check_scans(jpeg: bytes) -> None:
    """Refuse a JPEG with too many scans.

    Raises:
        UnreadablePhoto: it has too many.
    """
    scans = sum(code == 0xDA for code, _ in _segments(jpeg))
    if scans > _limits.max_scans:
        raise UnreadablePhoto(
            f"has {scans} scans, more than the limit of {_limits.max_scans} (--data.limits.max_scans)",
            may_pass=True,
        )


def _without_texts(png: bytes) -> Iterator[bytes | memoryview]:
    """Yield a PNG but for its texts and colour profile, which are not used; Pillow limits their sizes."""
    view, position = memoryview(png), len(_PNG)
    yield view[:position]
    while position + 8 <= len(png):
        length, name = struct.unpack_from(">I4s", png, position)
        end = position + length + 12
        unused = name in (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
        if not unused or _is_orientation(view[position + 8 : end - 4], name):
            yield view[position:end]
        position = end
    yield view[position:]


def _is_orientation(body: memoryview, chunk: bytes) -> bool:
    """Return whether a text of a PNG may hold the orientation, and is small."""
    keyword, _, text = bytes(body[: _MAX_TEXT + 1]).partition(b"\0")
    if keyword not in _ORIENTATION_TEXTS or len(body) > _MAX_TEXT:
        return False
    if chunk == b"iTXt":
        compressed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    else:
        compressed, text = chunk == b"zTXt", text[1:]
    return not compressed or _inflates_within_limit(text)


def _inflates_within_limit(compressed: bytes) -> bool:
    decoder = zlib.decompressobj()
    try:
        decoder.decompress(compressed, _MAX_TEXT)
    except zlib.error:
        return False
    return not decoder.unconsumed_tail


@cache
def _register_formats() -> bool:
    """Register Pillow's formats, and HEIF where pillow-heif is installed; return whether it is."""
    Image.init()
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except Exception:  # it is not installed, or a library that it needs is not
        return False
    return True


def _unknown(start: bytes, heif: bool) -> UnreadablePhoto:
    """Make the error about a file that no decoder recognises."""
    box = start[: int.from_bytes(start[:4], "big")] if start[4:8] == b"ftyp" else b""
    brands = {box[i : i + 4] for i in range(8, len(box), 4)}
    if brands & {b"avif", b"avis"}:
        if not features.check("avif"):
            return UnreadablePhoto("is an AVIF picture, which needs a Pillow that is built with AVIF", True)
        return UnreadablePhoto("damaged AVIF: its header cannot be read")
    if brands & _HEIF_BRANDS:
        if not heif:
            return UnreadablePhoto("is a HEIC picture, which needs: pip install 'flowers_pl[heif]'", True)
        return UnreadablePhoto("damaged HEIF: its header cannot be read")
    return UnreadablePhoto("not a picture in a known format")


def _mute_warnings() -> None:
    """Mute the warnings of the decoders for the whole process: `warnings.catch_warnings` is not thread-safe.

    They warn about bombs, odd metadata and, since torchvision 0.29, the deprecation of torchvision.io.
    """
    if warnings.filters[:1] != [_MUTE]:
        warnings.filterwarnings("ignore", module=_NOISY_MODULES)

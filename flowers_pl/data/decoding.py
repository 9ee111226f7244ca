"""Read and resize photos; nothing else in the program decodes a file.

torchvision decodes JPEGs: it took 360 us for a photo of 320 pixels where Pillow took 630. Pillow decodes
every other format, because torchvision drops alpha, gives uint16 for 16-bit PNGs and four dimensions for
GIFs, and refuses BMP and TIFF. Pillow reads the header and the EXIF orientation of all formats, because
torchvision looks for the orientation in the first APP1 segment only. Colour profiles are not applied.
"""

import re
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torchvision.io import ImageReadMode, decode_jpeg

from flowers_pl.data.formats import UnreadablePhoto, check_scans, open_picture, reduce_large
from flowers_pl.data.sources import PhotoSource, picture_of, read_bytes

__all__ = [
    "PhotoSource",
    "UnreadablePhoto",
    "load_photo",
    "open_picture",
    "orientation_of",
    "read_photo",
    "resize_photo",
]

_LARGE = 2**24  # pixels: larger photos are resized channel by channel, which takes a third of the memory

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


def read_photo(source: PhotoSource) -> torch.Tensor:
    """Read a picture as a photo viewer shows it.

    EXIF orientation is applied, alpha is composited over white, animations give their first frame, 16-bit
    grey is scaled to 8 bits by 1/257 (16-bit colour keeps its upper 8 bits), and all modes become RGB. JPEGs
    above the limit on pixels are decoded at a reduced scale.

    Args:
        source: a path of a regular file, or of a link to one; the bytes of such a file; or a file that is
            open in binary mode, which is read from its start if it can seek; in any of `formats.FORMATS`.
            Or a picture: a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    Returns:
        uint8, (3, H, W), RGB; channels last in memory, as the decoders write them.

    Raises:
        UnreadablePhoto: for every reason that a photo cannot be read; nothing else is raised, and no Python
            warning is given. (libjpeg writes a line to standard error about a corrupt but complete JPEG.)

    >>> import flowers_pl, tempfile
    >>> picture = flowers_pl.draw_flower("rose", seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     picture.save(f"{folder}/rose.png")
    ...     photo = read_photo(f"{folder}/rose.png")
    >>> photo.shape, torch.equal(photo, read_photo(picture))
    (torch.Size([3, 96, 96]), True)
    """
    try:
        if isinstance(source, np.ndarray):
            source = picture_of(source)
        if isinstance(source, Image.Image):
            return _decode(source)
        data = read_bytes(source)
        with open_picture(BytesIO(data)) as picture:
            return _decode(picture, data)
    except UnreadablePhoto:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        raise _damage(error, "picture") from error


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
    large = batch.shape[2] * batch.shape[3] > _LARGE if not torch.compiler.is_exporting() else False
    if large and batch.shape[1] > 1:  # an exported graph takes no branches on sizes
        resized = torch.cat([resize_photo(channel, size) for channel in batch.split(1, dim=1)], dim=1)
        return resized if photo.ndim == 4 else resized[0]
    pixels = batch.to(torch.float32)  # in its own memory format: changing that takes longer
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    # A mean of values of 0 to 255 is in range. torch converts int32 three times as fast as float32.
    resized = (pixels + 0.501).to(torch.int32).to(torch.uint8).contiguous()
    return resized if photo.ndim == 4 else resized[0]


def load_photo(source: PhotoSource, size: int | tuple[int, int]) -> torch.Tensor:
    """Read a photo and resize it: `resize_photo(read_photo(source), size)`.

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
    return resize_photo(read_photo(source), size)


def _decode(picture: Image.Image, data: bytes = b"") -> torch.Tensor:
    """Decode a picture whose header has been read: uint8, (3, H, W).

    Args:
        picture: decoded or not.
        data: the bytes of its file, if it comes from one.
    """
    try:
        jpeg = data and picture.format in ("JPEG", "MPO")
        if jpeg:
            check_scans(data)
        reduced = jpeg and reduce_large(picture)
        if jpeg and picture.mode in ("RGB", "L") and not reduced:
            photo = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        else:
            if picture.format == "PNG" and data and b"IEND" not in data:
                raise UnreadablePhoto("truncated PNG: its end is missing")
            picture.load()
            photo = torch.from_numpy(np.array(_to_rgb(picture))).permute(2, 0, 1)
        return _turn_upright(photo, orientation_of(picture))
    except UnreadablePhoto:
        raise
    except Exception as error:
        raise _damage(error, str(picture.format or "picture")) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Turn a loaded picture of any mode into RGB, composited over white where it has alpha."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
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


def _damage(error: Exception, kind: str) -> UnreadablePhoto:
    """Make the error about what a decoder raised, in one short line."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's RuntimeError
        return UnreadablePhoto(f"not enough memory to decode this {kind}", may_pass=True)
    lines = str(error).splitlines() or [type(error).__name__]
    detail = re.sub(r"^decode_jpeg, .*?:\d+, ", "", lines[0])[:120]  # torchvision begins with its source file
    fault = "truncated" if "truncated" in detail.lower() else "damaged"
    return UnreadablePhoto(f"{fault} {kind}: {detail}")

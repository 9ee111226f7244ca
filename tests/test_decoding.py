"""Every kind of file that `read_photo` may meet, and `resize_photo` against float64 arithmetic."""

import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from PIL import __version__ as pillow

from flowers_pl.data.decoding import UnreadablePhoto, load_photo, read_photo, resize_photo

OLD_PILLOW = int(pillow.partition(".")[0]) < 13  # Gradio (6.31) wants one
Array = npt.NDArray[np.int64]
ROOT = Path(__file__).parents[1]


def smooth(height: int = 40, width: int = 60, channels: int = 3) -> npt.NDArray[np.uint8]:
    """A smooth picture with no symmetry, uint8 (height, width, channels)."""
    small = np.random.default_rng(7).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    planes = [Image.fromarray(small[..., i]).resize((width, height)) for i in range(channels)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def check(photo: torch.Tensor) -> None:
    assert (photo.dtype, photo.ndim, photo.shape[0]) == (torch.uint8, 3, 3)


def levels(photo: torch.Tensor) -> Array:
    """A photo (3, H, W) as int64 (H, W, 3), after checking what every photo has."""
    check(photo)
    return photo.permute(1, 2, 0).numpy().astype(np.int64)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, trns: bytes = b"") -> bytes:
    """A PNG written by hand, for what Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = (chunk(b"tRNS", trns) if trns else b"") + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IEND", b"")


def app1(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def over_white(rgba: npt.NDArray[np.uint8]) -> Array:
    """The exact composite, rounded half up: int64 (H, W, 3)."""
    colour, alpha = rgba[..., :3].astype(np.float64), rgba[..., 3:] / 255.0
    return np.floor(colour * alpha + 255.0 * (1.0 - alpha) + 0.5).astype(np.int64)


def reason(path: Path) -> str:
    with pytest.raises(UnreadablePhoto) as caught:
        read_photo(path)
    message = str(caught.value)
    assert message.strip().count("\n") == 0 < len(message)
    assert str(path) not in message
    return message


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(data: bytes, name: str = "photo.jpg") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_as_pillow_reads_it(file: Callable[..., Path], mode: str, options: dict[str, object]) -> None:
    path = file(encoded(Image.fromarray(smooth()).convert(mode), "JPEG", quality=90, **options))
    difference = np.abs(levels(read_photo(path)) - np.asarray(Image.open(path).convert("RGB")))
    assert difference.max() <= 2


@pytest.mark.parametrize("orientation", [*range(10), 300])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(file: Callable[..., Path], kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    path = file(encoded(Image.fromarray(smooth()), kind, exif=exif, **options))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(np.int64)
    photo = levels(read_photo(path))
    assert photo.shape == expected.shape == ((60, 40, 3) if 5 <= orientation <= 8 else (40, 60, 3))
    assert np.abs(photo - expected).max() <= 2


def test_orientation_behind_another_segment(file: Callable[..., Path]) -> None:
    """Cameras and editors put XMP before EXIF; torchvision's own reader stops at the first APP1."""
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(Image.fromarray(smooth()), "JPEG", exif=exif)
    xmp = app1(b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    assert read_photo(file(jpeg[:2] + xmp + jpeg[2:])).shape == (3, 60, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_exif_does_not_matter(file: Callable[..., Path], kind: str) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x63\x01\x12\0\x03"
    path = file(encoded(Image.fromarray(smooth()), kind, exif=exif))
    assert read_photo(path).shape == (3, 40, 60)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_over_white(file: Callable[..., Path], kind: str) -> None:
    rgba = smooth(channels=4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    path = file(encoded(Image.fromarray(rgba), kind, **options))
    assert np.array_equal(levels(read_photo(path)), over_white(rgba))


def test_grey_with_alpha_over_white(file: Callable[..., Path]) -> None:
    grey = smooth(channels=2)
    path = file(encoded(Image.fromarray(grey, "LA"), "PNG"))
    assert np.array_equal(levels(read_photo(path)), over_white(grey[..., [0, 0, 0, 1]]))


def test_palette_with_alpha_over_white(file: Callable[..., Path]) -> None:
    palette = smooth(16, 16, 4).reshape(256, 4)
    index = smooth(channels=1)[..., 0]
    picture = Image.fromarray(index)
    picture.putpalette(palette[:, :3].tobytes())  # turns mode "L" into "P"
    path = file(encoded(picture, "PNG", transparency=palette[:, 3].tobytes()))
    assert np.array_equal(levels(read_photo(path)), over_white(palette[index]))


@pytest.mark.parametrize(
    ("depth", "colour", "row", "trns", "expected"),
    [
        (8, 0, bytes([10, 20, 30]), b"\0\x14", [[10] * 3, [255] * 3, [30] * 3]),
        (8, 2, bytes([1, 2, 3, 4, 5, 6, 4, 5, 7]), b"\0\4\0\5\0\6", [[1, 2, 3], [255] * 3, [4, 5, 7]]),
        (1, 0, bytes([0b01000000]), b"\0\0", [[255] * 3] * 3),
        (16, 0, struct.pack(">3H", 257, 2570, 2571), b"\x0a\x0a", [[1] * 3, [255] * 3, [10] * 3]),
        (16, 4, struct.pack(">6H", 0, 0, 0, 65535, 25700, 65535), b"", [[255] * 3, [0] * 3, [100] * 3]),
    ],
)
def test_png_transparency(
    file: Callable[..., Path], depth: int, colour: int, row: bytes, trns: bytes, expected: list[list[int]]
) -> None:
    photo = read_photo(file(png(3, 1, depth, colour, b"\0" + row, trns)))
    assert levels(photo)[0].tolist() == expected


def test_16_bit_grey(file: Callable[..., Path]) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257.0)[..., None].repeat(3, axis=-1)
    big = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    pgm = b"P5 256 256 65535\n" + values.astype(">u2").tobytes()
    little = Image.fromarray(values)
    for data in (encoded(little, "PNG"), encoded(little, "TIFF"), encoded(big, "TIFF"), pgm):
        assert np.array_equal(levels(read_photo(file(data))), expected)


def test_16_bit_colour(file: Callable[..., Path]) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (5, 4, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    photo = read_photo(file(png(4, 5, 16, 2, rows)))
    assert np.abs(levels(photo) - values / 257.0).max() <= 1.0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(file: Callable[..., Path], kind: str) -> None:
    first, *others = [Image.new("RGB", (8, 6), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = file(encoded(first, kind, save_all=True, append_images=others, **options))
    with Image.open(path) as picture:
        picture.seek(2)  # it is an animation
    assert (levels(read_photo(path)) == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"), ("P", "BMP"), ("CMYK", "TIFF"),
        pytest.param("YCbCr", "TIFF", marks=pytest.mark.skipif(OLD_PILLOW, reason="Pillow 12 fails")),
    ],
)  # fmt: skip
def test_other_modes(file: Callable[..., Path], mode: str, kind: str) -> None:
    picture = Image.fromarray(smooth()).convert(mode)
    path = file(encoded(picture, kind))
    assert np.array_equal(levels(read_photo(path)), np.asarray(picture.convert("RGB")))


def test_lab(file: Callable[..., Path]) -> None:
    """CIE Lab (54.29, 80.80, 69.89) under D50 is sRGB red; the file holds L * 2.55, a + 128, b + 128."""
    picture = Image.merge("LAB", [Image.new("L", (2, 2), level) for level in (138, 209, 198)])
    assert np.abs(levels(read_photo(file(encoded(picture, "TIFF")))) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 3), (1, 5000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_odd_sizes(file: Callable[..., Path], kind: str, width: int, height: int) -> None:
    path = file(encoded(Image.new("RGB", (width, height), (200, 100, 50)), kind))
    assert read_photo(path).shape == (3, height, width)
    small = levels(load_photo(path, (4, 6)))
    assert small.shape == (4, 6, 3)
    assert np.abs(small - [200, 100, 50]).max() <= 2


def test_names_do_not_matter_and_links_are_followed(file: Callable[..., Path], tmp_path: Path) -> None:
    path = file(encoded(Image.fromarray(smooth()), "PNG"), "png-called.jpg")
    link = tmp_path / "link.jpg"
    link.symlink_to(path)
    assert np.array_equal(levels(read_photo(str(link))), smooth())


JPEG = encoded(Image.fromarray(smooth(120, 160)), "JPEG", quality=90)
PNG = encoded(Image.fromarray(smooth()), "PNG")


@pytest.mark.parametrize("lost", [1, 2, 10, 100, len(JPEG) // 2, len(JPEG) - 700, len(JPEG) - 200])
def test_truncated_jpeg(file: Callable[..., Path], lost: int) -> None:
    assert reason(file(JPEG[:-lost])).startswith("truncated")


@pytest.mark.parametrize("lost", [100, 1000])
def test_truncated_cmyk_jpeg_and_zero_filled_jpeg(file: Callable[..., Path], lost: int) -> None:
    cmyk = encoded(Image.fromarray(smooth(120, 160)).convert("CMYK"), "JPEG", quality=90)
    assert reason(file(cmyk[:-lost])).startswith("truncated JPEG")
    assert reason(file(JPEG[:-lost] + bytes(lost))).startswith("truncated JPEG")


@pytest.mark.parametrize("lost", [8, 12, 20, 200, len(PNG) // 2, len(PNG) - 60])
def test_truncated_png(file: Callable[..., Path], lost: int) -> None:
    assert reason(file(PNG[:-lost])).startswith("truncated PNG")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM"])
def test_other_truncated_formats(file: Callable[..., Path], kind: str) -> None:
    data = encoded(Image.fromarray(smooth()), kind)
    for length in (len(data) // 3, len(data) // 2, len(data) - 50):
        assert reason(file(data[:length]))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file"),
        (b"\0", "not a picture"),
        (b"a flower, but in words\n" * 20, "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (JPEG[:2], "not a picture"),
        (JPEG[:20], "not a picture"),
        (png(16_000, 10_000, 8, 2, b""), "has 160 million pixels, more than the limit of 89 million"),
        (png(60_000, 60_000, 8, 2, b""), "has far more pixels than the limit of 89 million"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "has floating-point pixels"),
        (encoded(Image.new("I", (4, 4)), "TIFF"), "has 32-bit pixels"),
        (png(3, 1, 8, 0, b"\0\1\2\3", b"\0"), "not a picture" if OLD_PILLOW else "truncated picture"),
        (png(3, 1, 8, 0, b"\0\1"), "truncated PNG"),
        (png(3, 1, 8, 3, b"\0\1\2\3").replace(b"x\x9c", b"\0\0"), "damaged PNG"),
    ],
)
def test_bad_content(file: Callable[..., Path], data: bytes, expected: str) -> None:
    assert reason(file(data)).startswith(expected)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    with (tmp_path / "huge.jpg").open("wb") as sparse:
        sparse.truncate(2**41)
    assert reason(tmp_path / "fifo.jpg") == "is not a file"
    assert reason(tmp_path / "folder.jpg") == "is a folder"
    assert reason(Path("/dev/zero")) == "is not a file"
    assert reason(tmp_path / "absent.jpg") == "does not exist"
    assert reason(tmp_path / "dangling.jpg") == "is a link to nothing"
    assert reason(tmp_path / "circle.jpg") == "is part of a loop of links"
    assert reason(tmp_path / "huge.jpg") == "is larger than the limit of 1024 MiB (--data.limits.max_bytes)"
    assert reason(tmp_path / ("long" * 100)).startswith("cannot be read: ")
    assert reason(Path("nul\0")).startswith("damaged picture")


@pytest.mark.slow
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "private.jpg"
    path.write_bytes(JPEG)
    path.chmod(0)
    if os.geteuid():
        assert reason(path) == "no permission to read it"
        return
    for folder in (tmp_path, *tmp_path.parents[:3]):  # pytest's own folders are closed to others
        if folder.name.startswith("pytest-") or folder == tmp_path:
            folder.chmod(0o755)
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from flowers_pl.data.decoding import UnreadablePhoto, read_photo
os.setgid(65534)
os.setuid(65534)
try:
    read_photo({str(path)!r})
except UnreadablePhoto as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "no permission to read it", done.stderr


def test_no_warning_leaks(file: Callable[..., Path]) -> None:
    entries = struct.pack("<HHHIHH", 40, 0x0112, 3, 2, 6, 0)  # claims 40 entries, and two orientations
    noisy = JPEG[:2] + app1(b"Exif\0\0II*\0\x08\0\0\0" + entries + bytes(4)) + JPEG[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(file(noisy)).shape == (3, 160, 120)
        reason(file(png(16_000, 10_000, 8, 2, b"")))


def test_threads_agree(file: Callable[..., Path]) -> None:
    paths = [file(JPEG, "a.jpg"), file(PNG, "b.png")]
    expected = [read_photo(path) for path in paths]
    same: list[bool] = []

    def work() -> None:
        same.extend(
            torch.equal(read_photo(p), e) for _ in range(10) for p, e in zip(paths, expected, strict=True)
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 80


def triangle_weights(length: int, wanted: int) -> npt.NDArray[np.float64]:
    """Antialiased bilinear resize along one axis as a matrix, float64 (wanted, length)."""
    scale = length / wanted
    reach = max(scale, 1.0)
    centres = (np.arange(wanted)[:, None] + 0.5) * scale
    weights = np.clip(1.0 - np.abs(np.arange(length)[None] + 0.5 - centres) / reach, 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("size", [32, (48, 20), (75, 300), 1])
@pytest.mark.parametrize("shape", [(240, 320), (37, 91), (1, 1), (32, 32), (3, 2000)])
def test_resize_against_float64(shape: tuple[int, int], size: int | tuple[int, int]) -> None:
    photo = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, *shape), dtype=np.uint8))
    height, width = (size, size) if isinstance(size, int) else size
    exact = triangle_weights(shape[0], height) @ photo.numpy() @ triangle_weights(shape[1], width).T
    resized = resize_photo(photo, size)
    assert resized.shape == (3, height, width)
    assert resized.dtype == torch.uint8
    assert np.abs(resized.numpy() - exact).max() <= 0.51
    sure = (
        np.abs((exact + 0.501) % 1.0 - 0.5) < 0.49
    )  # farther than float32 noise, 0.004, from the rule's step
    assert np.array_equal(resized.numpy()[sure], np.floor(exact + 0.501)[sure])


def test_resize_rounds_ties_up() -> None:
    """The mean of two neighbours: 2.5 becomes 3 where `round` says 2."""
    columns = torch.tensor([[[2, 3]], [[0, 1]], [[254, 255]]], dtype=torch.uint8)
    assert resize_photo(columns, 1).flatten().tolist() == [3, 1, 255]
    many = torch.stack([torch.arange(255), torch.arange(1, 256)], dim=-1).to(torch.uint8)
    assert torch.equal(resize_photo(many.expand(3, 255, 2), (255, 1))[0, :, 0].long(), torch.arange(1, 256))


def test_resize_does_not_depend_on_memory_or_threads() -> None:
    batch = torch.randint(
        0, 256, (4, 3, 90, 131), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    expected = resize_photo(batch, 64)
    assert torch.equal(resize_photo(batch.contiguous(memory_format=torch.channels_last), 64), expected)
    turned = batch.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(resize_photo(turned, 64), expected)
    assert torch.equal(torch.stack([resize_photo(photo, 64) for photo in batch]), expected)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert torch.equal(resize_photo(batch, 64), expected)
    finally:
        torch.set_num_threads(before)


def test_resize_refuses_floats() -> None:
    with pytest.raises(TypeError, match="uint8"):
        resize_photo(torch.zeros(3, 4, 4), 2)

"""Photos that viewers show, though an ordinary decoder refuses them; and what only looks like one of them."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from test_decoding import app1, encoded, png

from flowers_pl.core.errors import FlowersError
from flowers_pl.data import formats
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import UnreadablePhoto, load_photo, read_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.formats import Limits, get_limits, set_limits

FLOWER = draw_flower("rose", 0, 96).crop((0, 0, 96, 64))
JPEG = encoded(FLOWER, "JPEG", quality=95)
PNG = encoded(FLOWER, "PNG")
TEXT = "x" * 3_000_000


@pytest.fixture(autouse=True)
def own_limits() -> Iterator[None]:
    yield
    set_limits(Limits())


def reason(photo: bytes) -> str:
    with pytest.raises(UnreadablePhoto) as caught:
        read_photo(photo)
    return str(caught.value)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# ---------------------------------------------------------------- PNG with much metadata


@pytest.mark.parametrize("before", [True, False], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("international", [True, False])
def test_a_png_with_3_mb_of_text_is_read(before: bool, compressed: bool, international: bool) -> None:
    info = PngImagePlugin.PngInfo()
    add = info.add_itxt if international else info.add_text
    add("parameters", TEXT, zip=compressed)
    data = encoded(FLOWER, "PNG", pnginfo=info)
    if not before:
        ((name, body, *_),) = info.chunks
        data = PNG[:-12] + chunk(name, body) + PNG[-12:]
    assert torch.equal(read_photo(data), read_photo(PNG))


def test_a_png_with_a_huge_colour_profile_is_read() -> None:
    assert torch.equal(read_photo(encoded(FLOWER, "PNG", icc_profile=bytes(3_000_000))), read_photo(PNG))


def test_orientation_in_the_texts_of_a_png_is_applied() -> None:
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    magick = PngImagePlugin.PngInfo()
    exif = b"Exif\0\0" + turned(6).tobytes().removeprefix(b"Exif\0\0")
    magick.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=True)
    for info in (xmp, magick):
        assert read_photo(encoded(FLOWER, "PNG", pnginfo=info)).shape == (3, 96, 64)


def test_orientation_that_unpacks_to_megabytes_is_passed_over() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", TEXT, zip=True)
    info.add_text("Raw profile type exif", TEXT, zip=True)
    assert torch.equal(read_photo(encoded(FLOWER, "PNG", pnginfo=info)), read_photo(PNG))


# ---------------------------------------------------------------- JPEG with more behind it or in it


def test_a_motion_photo_of_8_mb_is_read() -> None:
    video = b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(8 << 20)
    assert video.count(b"\xff\xda") > 100
    assert torch.equal(read_photo(JPEG + video), read_photo(JPEG))


def test_thumbnails_and_trailing_bytes_have_no_scans() -> None:
    scans = b"\xff\xda\0\x08" * 500
    thumbnail = app1(b"Exif\0\0" + scans)
    for data in (JPEG + scans, JPEG[:2] + thumbnail + JPEG[2:], JPEG[:2] + thumbnail * 9 + JPEG[2:] + scans):
        assert torch.equal(read_photo(data), read_photo(JPEG))


def test_a_jpeg_of_several_pictures_gives_the_first() -> None:
    others = [draw_flower("tulip", seed, 96) for seed in range(3)]
    data = encoded(FLOWER, "MPO", save_all=True, append_images=others, quality=95)
    assert torch.equal(read_photo(data), read_photo(JPEG))


def test_a_jpeg_of_hundreds_of_scans_is_still_refused() -> None:
    progressive = encoded(FLOWER, "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    assert read_photo(progressive[:-2] + last * 80 + progressive[-2:]).shape == (3, 64, 96)
    assert "scans, more than the limit of 100" in reason(progressive[:-2] + last * 200 + b"\xff\xd9")


# ---------------------------------------------------------------- large pictures


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_of_108_megapixels_is_read_at_half_its_size(orientation: int) -> None:
    colours = Image.fromarray(np.arange(4 * 3 * 3, dtype=np.uint8).reshape(3, 4, 3) * 7)
    large = colours.resize((12_000, 9_000), Image.Resampling.NEAREST)
    data = encoded(large, "JPEG", quality=70, exif=turned(orientation))
    expected = load_photo(encoded(large.reduce(8), "JPEG", quality=70, exif=turned(orientation)), 48)
    photo = read_photo(data)
    assert photo.shape == ((3, 4500, 6000) if orientation == 1 else (3, 6000, 4500))
    assert (load_photo(data, 48).int() - expected.int()).abs().float().mean() < 2
    assert reason(data[: len(data) // 2]).startswith("truncated JPEG")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_above_the_limit_are_reduced_as_much_as_needed(mode: str, options: dict[str, bool]) -> None:
    data = encoded(FLOWER.convert(mode), "JPEG", quality=95, **options)
    whole = read_photo(data)
    for most, shape in ((96 * 64, (64, 96)), (4000, (32, 48)), (3100, (32, 48))):
        set_limits(Limits(max_pixels=most))
        photo = read_photo(data)
        assert photo.shape[1:] == shape
        small = load_photo(photo.permute(1, 2, 0).numpy(), 16).int()
        assert (small - load_photo(whole.permute(1, 2, 0).numpy(), 16).int()).abs().float().mean() < 6


def bomb(jpeg: bytes, size: int) -> bytes:
    """Let the header of a JPEG claim another size."""
    header = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: header + 5] + struct.pack(">HH", size, size) + jpeg[header + 9 :]


def test_bombs_are_refused_before_memory_is_asked_for() -> None:
    gif = encoded(FLOWER, "GIF")
    gif = gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:]
    progressive = encoded(FLOWER, "JPEG", progressive=True)
    parts = encoded(FLOWER, "JPEG")
    assert "pixels than the limit of 89 million" in reason(gif)
    for data in (png(16_000, 10_000, 8, 2, b""), bomb(JPEG, 65_535), bomb(progressive, 20_000)):
        assert "million pixels, more than the limit of 89 million" in reason(data)
    start = parts.index(b"\xff\xda")  # one component a scan: the decoder keeps the coefficients of all
    assert "more than the limit" in reason(bomb(parts[: start + 4] + b"\1" + parts[start + 5 :], 20_000))


def test_limits_are_settings_of_the_data_module() -> None:
    FlowersDataModule(limits=Limits(max_pixels=1000, max_scans=5, max_bytes=10**6))
    assert get_limits() == Limits(1000, 10**6, 5)
    assert reason(PNG) == "has 6,144 pixels, more than the limit of 1,000 (--data.limits.max_pixels)"
    assert "max_scans" in reason(encoded(draw_flower("rose", 0, 30), "JPEG", progressive=True))
    assert reason(PNG + bytes(10**6)).startswith("is larger than the limit of")
    FlowersDataModule()
    assert read_photo(PNG).shape == (3, 64, 96)
    with pytest.raises(FlowersError, match=r"--data\.limits\.max_bytes must be at least 1"):
        Limits(max_bytes=0)


def test_a_raised_limit_is_also_raised_for_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert reason(PNG).startswith("has far more pixels than the limit")
    set_limits(Limits(max_pixels=10_000))
    assert read_photo(PNG).shape == (3, 64, 96)


# ---------------------------------------------------------------- HEIC and AVIF


def heic(**options: object) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded(FLOWER, "HEIF", quality=95, **options)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_heic_from_a_phone_is_turned_once(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "IMG_0001.HEIC").write_bytes(heic(exif=turned(orientation).tobytes()))
    expected = read_photo(encoded(FLOWER, "PNG", exif=turned(orientation)))
    photo = read_photo(tmp_path / "IMG_0001.HEIC")
    assert photo.shape == expected.shape
    assert (photo.int() - expected.int()).abs().float().mean() < 6


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_avif_is_turned_once(orientation: int) -> None:
    expected = read_photo(encoded(FLOWER, "PNG", exif=turned(orientation)))
    photo = read_photo(encoded(FLOWER, "AVIF", quality=95, exif=turned(orientation)))
    assert photo.shape == expected.shape
    assert (photo.int() - expected.int()).abs().float().mean() < 6


def test_a_heic_above_the_limit_is_refused_before_it_is_decoded() -> None:
    data = heic()
    set_limits(Limits(max_pixels=1000))
    assert "6,144 pixels, more than the limit of 1,000" in reason(data)


def test_a_damaged_heic_or_avif_is_named() -> None:
    for data, name in ((heic(), "HEIF"), (encoded(FLOWER, "AVIF"), "AVIF")):
        assert name in reason(data[: len(data) // 2])


def test_a_heic_without_pillow_heif_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    formats._register_formats.cache_clear()
    try:
        with pytest.raises(UnreadablePhoto, match=r"pip install 'flowers_pl\[heif\]'") as caught:
            read_photo(data)
    finally:
        formats._register_formats.cache_clear()
    assert caught.value.may_pass  # the cache tries it again once it is installed


# ---------------------------------------------------------------- what comes from outside is never shown raw


def test_reasons_are_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise ValueError("bad tag \x1b[31m\u202e \udce8")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert reason(PNG) == "damaged PNG: bad tag \\x1b[31m\\u202e \\xe8"

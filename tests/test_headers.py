"""headers.py: what a file says of itself, and whether its name fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flowers_pl.audit.headers import Header, name_fault, read_header
from flowers_pl.data.decoding import UnreadablePhoto, read_photo


def test_format_size_and_mode(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    Image.new("P", (5, 6)).save(tmp_path / "b.png")
    assert read_header(tmp_path / "a.jpg") == Header("JPEG", 40, 30, "RGB", 1, False)
    assert read_header(tmp_path / "b.png") == Header("PNG", 5, 6, "P", 1, False)


@pytest.mark.parametrize("orientation", range(10))
def test_the_size_is_that_of_the_upright_photo(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    header = read_header(tmp_path / "a.jpg")
    assert (3, header.height, header.width) == read_photo(tmp_path / "a.jpg").shape
    assert header.orientation == (orientation if 1 <= orientation <= 8 else 1)


def test_more_than_one_frame_is_animated(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_header(tmp_path / name).animated
    frames[0].save(tmp_path / "b.gif")
    assert not read_header(tmp_path / "b.gif").animated


def test_a_file_that_is_no_picture_any_more_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    for name in ("a.jpg", "none.jpg"):
        with pytest.raises(UnreadablePhoto):
            read_header(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "format", "fault"),
    [
        ("rose/a.jpg", "JPEG", ""),
        ("rose/a.JPEG", "JPEG", ""),
        ("rose/a.jfif", "JPEG", ""),
        ("rose/a.jpg", "MPO", ""),
        ("rose/a.tif", "TIFF", ""),
        ("rose/a.jpg", "PNG", "is a PNG, but is called .jpg"),
        ("rose/a.png", "WEBP", "is a WEBP, but is called .png"),
        ("rose/a.txt", "JPEG", "is a JPEG, but .txt is no picture's extension"),
        ("rose.jpg/a", "JPEG", "is a JPEG, but has no picture's extension"),
    ],
)
def test_names_are_compared_with_what_is_in_the_file(path: str, format: str, fault: str) -> None:
    assert name_fault(path, format) == fault

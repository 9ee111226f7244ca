"""Damaged pictures by the thousand: each is read to the right shape, or refused with a reason.

They are read in processes of their own, so that a crash of a decoder is seen, and of what.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_pl.data.decoding import UnreadablePhoto, load_photo, read_photo
from flowers_pl.data.drawings import KINDS, draw_flower

ROOT = Path(__file__).parents[1]
PATIENCE = 30  # seconds of computing for one picture: then it hangs, and is ended
EACH = 600  # mutations a seed


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sources() -> list[bytes]:
    """Drawings as JPEG and PNG of every sort, and some real photos where they are at hand."""
    exif = Image.Exif()
    exif[0x0112] = 6
    first, *others = [draw_flower(kind, 50, 96).crop((0, 0, 96, 72)) for kind in KINDS]
    grey16 = Image.fromarray(np.asarray(first.convert("L")).astype(np.uint16) * 257)
    found = [
        *(encoded(one, "JPEG", quality=85) for one in others),
        encoded(first, "JPEG", progressive=True),
        encoded(first, "JPEG", exif=exif, subsampling=0),
        encoded(first.convert("L"), "JPEG"),
        encoded(first.convert("CMYK"), "JPEG", restart_marker_blocks=4),
        *(encoded(first.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        encoded(grey16, "PNG"),
        encoded(first, "PNG", exif=exif),
    ]
    photos = (
        sorted(Path(os.environ["FLOWERS_PHOTOS"]).glob("*/*"))[::400]
        if "FLOWERS_PHOTOS" in os.environ
        else []
    )
    for photo in photos:
        found += [photo.read_bytes(), encoded(Image.open(photo), "PNG")]
    return found


def mutate(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """Damage a file in one to four places, half of them in its first 700 bytes, where the headers are."""
    damaged = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        place = draw.randrange(min(len(damaged), draw.choice([700, len(damaged)])))
        length = draw.choice([1, 2, 4, 16, 64, 300])
        match draw.randrange(7):
            case 0:
                damaged[place] ^= 1 << draw.randrange(8)
            case 1:
                damaged[place : place + length] = draw.randbytes(length)
            case 2:
                damaged[place : place + length] = draw.choice([b"\0", b"\xff", b"\x7f"]) * length
            case 3:
                del damaged[place : place + length]
            case 4:
                damaged[place:place] = damaged[place : place + length] * draw.choice([1, 20])
            case 5:
                del damaged[max(place, 8) :]
            case _:
                other = draw.choice(others)
                damaged[place:] = other[place % len(other) :]
        damaged = damaged or bytearray(b"\0")
    return bytes(damaged)


def size_told(data: bytes) -> tuple[int, int]:
    """Height and width as Pillow reads them from the header, turned upright."""
    with Image.open(BytesIO(data)) as picture:
        try:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception:  # damaged metadata
            turned = False
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def work(seed: int, file: Path) -> None:
    """Read one seed's pictures; say which is being read, so that a crash has a name, and what came of it."""
    draw, given, read, refused = random.Random(seed), sources(), 0, 0
    for number in range(EACH):
        data = mutate(draw.choice(given), draw, given)
        file.write_bytes(data)
        print(f"seed {seed} picture {number}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        try:
            photo = read_photo(file)
        except UnreadablePhoto as error:
            reason = str(error)
            refused += 1
        else:
            reason = "read"
            assert tuple(photo.shape) == (3, *size_told(data)), tuple(photo.shape)
            assert load_photo(file, 32).shape == (3, 32, 32)
            read += 1
        assert reason.strip(), "lost without a reason"
        assert "\n" not in reason
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(f"{read} read, {refused} refused")


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.release) for seed in range(1, 7))]
)
def test_damaged_pictures_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    code = f"from test_fuzz import *; work({seed}, Path({str(tmp_path / 'picture')!r}))"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]}: {done.stderr[-2000:]}"
    read, refused = (int(word) for word in lines[-1].split() if word.isdigit())
    assert read + refused == EACH
    assert min(read, refused) > EACH // 10  # the damage is neither too little nor too much

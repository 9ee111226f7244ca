"""duplicates.py: the same photo is found however it was saved, and different ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from flowers_pl.data.cache import decode_photos
from flowers_pl.data.decoding import read_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.duplicates import Fingerprint, duplicate_groups, fingerprint
from flowers_pl.data.folder import list_photos


def prints(*pictures: Image.Image) -> list[Fingerprint]:
    return [fingerprint(torch.from_numpy(np.array(picture)).permute(2, 0, 1)) for picture in pictures]


def groups(found: list[Fingerprint]) -> list[int]:
    hashes = np.array([one.phash for one in found], dtype=np.uint64)
    return duplicate_groups(
        [one.digest for one in found], hashes, np.stack([one.thumb for one in found])
    ).tolist()


def test_copies_resized_recompressed_and_recoloured_are_one_group(tmp_path: Path) -> None:
    rose, tulip = draw_flower("rose", 1, 320), draw_flower("tulip", 2, 320)
    rose.save(tmp_path / "rose.jpg", quality=60)
    recompressed = Image.fromarray(read_photo(tmp_path / "rose.jpg").permute(1, 2, 0).numpy())
    smaller = rose.resize((240, 240), Image.Resampling.LANCZOS)
    brighter = rose.point(lambda level: min(255, int(level * 1.2)))
    assert groups(prints(rose, tulip, rose.copy(), recompressed, smaller, brighter)) == [0, 1, 0, 0, 0, 0]


def test_a_chain_of_duplicates_is_one_group() -> None:
    digests = ["a", "b", "b", "c", "a"]
    hashes = np.array([0, 0xFFFF, 0xFFFF, 2**60 - 1, 0], dtype=np.uint64)
    thumbs = np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8)
    assert duplicate_groups(digests, hashes, thumbs).tolist() == [0, 1, 1, 3, 0]
    hashes[3], thumbs[3] = 0xFFFE, thumbs[1]  # near the second pair
    hashes[4] = 2**40 - 1  # the first pair is held together by its digest alone
    assert duplicate_groups(digests, hashes, thumbs).tolist() == [0, 1, 1, 1, 0]


def test_a_near_hash_alone_is_not_enough() -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    assert duplicate_groups(["a", "b"], np.zeros(2, np.uint64), thumbs).tolist() == [0, 1]


def test_the_limit_is_six_bits() -> None:
    thumb = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for bits, expected in ((6, [0, 0]), (7, [0, 1])):
        hashes = np.array([0, 2**bits - 1], dtype=np.uint64)
        assert duplicate_groups(["a", "b"], hashes, np.stack([thumb, thumb])).tolist() == expected


def test_more_photos_than_are_compared_at_once() -> None:
    count = 600
    hashes = np.random.default_rng(1).integers(0, 2**63, count, dtype=np.uint64)
    thumbs = np.random.default_rng(2).integers(0, 256, (count, 16, 16), dtype=np.uint8)
    hashes[599], thumbs[599] = hashes[3], thumbs[3]
    found = duplicate_groups([str(photo) for photo in range(count)], hashes, thumbs).tolist()
    assert found == [*range(599), 3]


def test_blurring_does_not_hide_a_copy() -> None:
    photo = draw_flower("daisy", 5, 320)
    assert groups(prints(photo, photo.filter(ImageFilter.GaussianBlur(1)))) == [0, 0]


def test_drawings_are_no_duplicates_of_each_other(drawings: Path) -> None:
    decoded = decode_photos(drawings, list_photos(drawings), 32, workers=0)
    assert duplicate_groups(decoded.digests, decoded.phashes, decoded.thumbs).tolist() == list(range(50))

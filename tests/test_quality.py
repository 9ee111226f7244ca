"""quality.py: pictures that were made dark, bright, blank or blurred are found, and good ones are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from flowers_pl.audit.quality import ALIKE, far_away, measure_appearance, neighbourhood
from flowers_pl.data.drawings import KINDS, draw_flower


def photo(kind: str = "rose", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 6, (160, 160, 3))
    drawn = np.array(draw_flower(kind, seed, 160)) + noise
    return Image.fromarray(drawn.clip(0, 255).astype(np.uint8))


def kinds(*pictures: Image.Image) -> list[list[str]]:
    pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in pictures])
    return [[kind for kind, _ in appearance.faults()] for appearance in measure_appearance(pixels)]


def test_drawings_are_neither_dark_nor_bright_nor_blank_nor_blurred() -> None:
    assert kinds(*(photo(kind, seed) for kind in KINDS for seed in range(4))) == [[]] * 20


def test_what_was_done_to_a_picture_is_found() -> None:
    good = photo()
    noise = np.random.default_rng(0).normal(128, 2, (160, 160, 3)).clip(0, 255).astype(np.uint8)
    assert kinds(
        good.point(lambda level: level // 4),
        good.point(lambda level: 195 + level // 4.5),
        Image.new("RGB", (160, 160), "white"),
        Image.fromarray(noise),
        good.filter(ImageFilter.GaussianBlur(4)),
    ) == [["too dark"], ["too bright"], ["nearly blank", "too bright"], ["nearly blank"], ["blurred"]]


def test_a_flower_on_black_is_not_too_dark_and_one_on_a_smooth_background_not_blurred() -> None:
    black, smooth = Image.new("RGB", (160, 160), "black"), photo().filter(ImageFilter.GaussianBlur(8))
    for picture in (black, smooth):
        picture.paste(photo().resize((50, 50)), (50, 50))
    assert kinds(black, smooth) == [[], []]


@pytest.mark.parametrize("rows", [7, 1024])
def test_distance_to_the_nearest_is_the_mean_over_ten_by_brute_force(rows: int) -> None:
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    groups = np.arange(40)
    groups[1] = 0
    near = neighbourhood(features, groups, rows)
    units = features / features.norm(dim=1, keepdim=True)
    for row in range(40):
        others = sorted(
            1 - float(units[row] @ units[other]) for other in range(40) if groups[other] != groups[row]
        )
        assert near.distance[row] == pytest.approx(np.mean(others[:10]), abs=1e-5)
    pairs = {
        (one, other)
        for one in range(40)
        for other in range(one + 1, 40)
        if float(units[one] @ units[other]) >= ALIKE and groups[one] != groups[other]
    }
    assert {pair[:2] for pair in near.alike} == pairs


def test_look_alikes_are_found_and_duplicates_are_not_among_them() -> None:
    features = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    features[5] = features[20] + 0.1 * features[5]
    features[7] = features[9]
    groups = np.arange(30)
    groups[9] = 7
    assert [pair[:2] for pair in neighbourhood(features, groups).alike] == [(5, 20)]


def test_what_is_far_from_all_classes_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 32, generator=generator)
    features = centres.repeat(40, 1) + 0.3 * torch.randn(120, 32, generator=generator)
    strange = [10, 50]
    features[strange] = torch.randn(2, 32, generator=generator)
    far = far_away(neighbourhood(features, np.arange(120)).distance)
    assert set(far[:2]) == set(strange)
    assert len(far) <= 12


def test_two_photos_are_enough_to_be_compared() -> None:
    near = neighbourhood(torch.eye(2), np.arange(2))
    assert near.distance.tolist() == [1, 1]
    assert far_away(near.distance) == []

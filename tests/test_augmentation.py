"""augmentation.py against oracles: OpenCV for the warp, plain arithmetic for the draws."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.augmentation import (
    BITS,
    DRAWS,
    Augmentation,
    affine_matrices,
    augment,
    augment_opencv,
    augment_torch,
    epoch_draws,
)

STILL = Augmentation(rotation=0, shift=0, zoom=0, brightness=0, flip=False)
ROTATION, RIGHT, DOWN, ZOOM_X, ZOOM_Y, FLIP, BRIGHTNESS = range(DRAWS)
MIDDLE = 2 ** (BITS - 1)  # the draw that changes nothing (and does not flip)

Way = Callable[[Tensor, Tensor, Augmentation], Tensor]


def draws(**chosen: list[float]) -> Tensor:
    """Draws of photos of which only the named ones differ from the middle: shares from 0 to 1."""
    count = len(next(iter(chosen.values())))
    table = torch.full((count, DRAWS), MIDDLE, dtype=torch.int32)
    for name, shares in chosen.items():
        table[:, globals()[name]] = torch.tensor([min(int(share * 2**BITS), 2**BITS - 1) for share in shares])
    return table


def smooth_photos(count: int, height: int = 48, width: int = 48) -> Tensor:
    """Photos without sharp edges, so that two interpolations agree closely."""
    noise = np.random.default_rng(0).uniform(0, 255, (count, height, width, 3)).astype(np.float32)
    return torch.from_numpy(np.stack([cv2.GaussianBlur(one, (0, 0), 3) for one in noise])).permute(0, 3, 1, 2)


def test_the_middle_draw_changes_nothing() -> None:
    photos = torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8)
    torch.testing.assert_close(
        augment(photos, draws(FLIP=[0.5] * 3), Augmentation()), photos.float(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("way", [augment_torch, augment_opencv])
def test_the_warp_is_opencvs_with_replicated_border(way: Way) -> None:
    photos, how = smooth_photos(12, 40, 56), Augmentation(brightness=0)
    some = torch.from_numpy(epoch_draws(3, 0, 12).draws)
    warped = way(photos, some, how)
    for photo, expected, matrix in zip(photos, warped, pixel_matrices(some, how, 40, 56), strict=True):
        ours = cv2.warpAffine(
            photo.permute(1, 2, 0).numpy(), matrix, (56, 40),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        difference = np.abs(ours - expected.permute(1, 2, 0).numpy())
        assert difference.mean() < 0.1  # OpenCV rounds places to 1/32 pixel
        assert difference.max() < 3


def test_a_gpu_augments_as_a_cpu_does() -> None:
    """By the code for GPUs, run on a CPU; bytes in, all five changes."""
    photos = smooth_photos(12, 40, 56).to(torch.uint8)
    some = torch.from_numpy(epoch_draws(4, 0, 12).draws)
    one, other = (way(photos, some, Augmentation()) for way in (augment_torch, augment_opencv))
    assert one.dtype == other.dtype == torch.float32
    assert (one - other).abs().mean() < 0.1
    assert (one - other).abs().max() < 3
    assert (one - photos).abs().mean() > 10


def pixel_matrices(some: Tensor, how: Augmentation, height: int, width: int) -> list[np.ndarray]:
    """From pixel to pixel, multiplied out step by step from the definitions: flip, zoom, shift, rotate, about
    the middle."""
    share = some.double().numpy() / 2**BITS
    signed = 2 * share - 1
    result = []
    for row, one in zip(share, signed, strict=True):
        angle = np.deg2rad(how.rotation * one[ROTATION])
        rotate = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        move = np.array(
            [[1, 0, how.shift * width * one[RIGHT]], [0, 1, how.shift * height * one[DOWN]], [0, 0, 1]]
        )
        zoom = np.diag([1 + how.zoom * one[ZOOM_X], 1 + how.zoom * one[ZOOM_Y], 1])
        flip = np.diag([-1 if row[FLIP] < 0.5 else 1, 1, 1])
        to_middle = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
        result.append((np.linalg.inv(to_middle) @ rotate @ move @ zoom @ flip @ to_middle)[:2])
    return result


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 1.0])
def test_rotation_turns_each_photo_by_its_own_angle(share: float) -> None:
    some = draws(ROTATION=[share, 0.5])
    matrix = affine_matrices(some / 2**BITS, Augmentation(), (160, 160))
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert angle.tolist() == pytest.approx([25 * (2 * share - 1), 0], abs=1e-4)


def test_shifts_are_shares_of_width_and_height() -> None:
    photos = torch.arange(40.0).repeat(2, 3, 20, 1)  # each column holds its number
    moved = augment(
        photos, draws(RIGHT=[0.0, 1.0]), Augmentation(rotation=0, zoom=0, brightness=0, flip=False)
    )
    assert moved[0, 0, 0].tolist() == pytest.approx(
        [0] * 4 + list(range(36)), abs=1e-3
    )  # 10 % of 40; edge replicated
    assert moved[1, 0, 0].tolist() == pytest.approx(list(range(4, 40)) + [39] * 4, abs=1e-3)
    lower = augment(
        photos.transpose(2, 3), draws(DOWN=[0.0, 1.0]), Augmentation(rotation=0, zoom=0, brightness=0)
    )
    assert lower[0, 0, :, 0].tolist() == pytest.approx([0] * 4 + list(range(36)), abs=1e-3)


def test_the_two_zooms_are_drawn_apart() -> None:
    matrix = affine_matrices(
        draws(ZOOM_X=[0.0, 1.0, 0.5], ZOOM_Y=[0.5, 0.5, 1.0]) / 2**BITS, Augmentation(), (160, 160)
    )
    assert matrix[:, 0, 0].tolist() == pytest.approx([0.85, 1.15, 1.0])
    assert matrix[:, 1, 1].tolist() == pytest.approx([1.0, 1.0, 1.15])
    assert matrix[:, 0, 1].abs().max() == 0


def test_half_of_the_photos_are_mirrored() -> None:
    photos = torch.rand(2, 3, 8, 9) * 255
    flipped = augment(
        photos, draws(FLIP=[0.49, 0.51]), Augmentation(rotation=0, shift=0, zoom=0, brightness=0)
    )
    torch.testing.assert_close(flipped[0], photos[0].flip(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(flipped[1], photos[1], atol=1e-3, rtol=0)
    shares = epoch_draws(0, 0, 4000).draws[:, FLIP] < MIDDLE
    assert shares.mean() == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)


def test_brightness_multiplies_and_is_clamped() -> None:
    photos = torch.tensor([10.0, 100.0, 250.0]).view(1, 1, 1, 3).repeat(2, 3, 1, 1)
    lit = augment(photos, draws(BRIGHTNESS=[0.0, 1.0]), Augmentation(rotation=0, shift=0, zoom=0, flip=False))
    assert lit[0, 0, 0].tolist() == pytest.approx([8, 80, 200], abs=1e-2)
    assert lit[1, 0, 0].tolist() == pytest.approx([12, 120, 255], abs=1e-2)


def test_edges_are_replicated_not_blackened() -> None:
    white = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    assert (
        augment(white, torch.from_numpy(epoch_draws(0, 0, 64).draws), Augmentation(brightness=0)).min()
        > 254.9
    )


def test_draws_cover_their_ranges_and_differ_by_photo_epoch_and_seed() -> None:
    share = epoch_draws(0, 0, 5000).draws / 2**BITS
    assert share.min(0) == pytest.approx([0] * DRAWS, abs=0.01)
    assert share.max(0) == pytest.approx([1] * DRAWS, abs=0.01)
    assert np.abs(np.corrcoef(share.T) - np.eye(DRAWS)).max() < 5 / 5000**0.5
    first = epoch_draws(0, 0, 100)
    for other in (epoch_draws(0, 1, 100), epoch_draws(1, 0, 100)):
        for name in ("order", "draws", "keys"):
            assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_a_photos_draws_do_not_depend_on_how_many_photos_there_are() -> None:
    few, many = epoch_draws(7, 3, 10), epoch_draws(7, 3, 1000)
    assert np.array_equal(few.draws, many.draws[:10])
    assert np.array_equal(few.keys, many.keys[:10])
    assert sorted(many.order.tolist()) == list(range(1000))


def test_draws_are_the_same_on_every_machine() -> None:
    """Philox is a fixed algorithm; these numbers are written down, so that no release of numpy changes a run
    in silence."""
    assert epoch_draws(0, 1, 1).draws.tolist() == [
        [9858006, 9422376, 5000152, 426005, 5426218, 10463675, 3712392]
    ]
    assert epoch_draws(-1, 0, 2).keys.tolist() == [8616273357809074041, -6481398688439215130]
    assert epoch_draws(5, 2, 8).order.tolist() == [6, 5, 1, 0, 2, 4, 7, 3]


def test_another_default_dtype_changes_nothing() -> None:
    """Lightning sets it at --trainer.precision 64-true, for all threads at once."""
    photos, drawn = smooth_photos(4), torch.from_numpy(epoch_draws(0, 1, 4).draws)
    expected = augment_opencv(photos, drawn, Augmentation())
    torch.set_default_dtype(torch.float64)
    try:
        found = augment_opencv(photos, drawn, Augmentation())
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_an_empty_batch_stays_empty() -> None:
    empty = augment(
        torch.empty(0, 3, 8, 8, dtype=torch.uint8), torch.empty(0, DRAWS, dtype=torch.int32), Augmentation()
    )
    assert empty.shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"zoom": 1.0}, {"brightness": 1.5}, {"rotation": -1.0}, {"shift": -0.1}, {"crop": 0.0},
        {"crop": 1.1}, {"contrast": -0.1}, {"saturation": 2.0}, {"weak_crop": 0.0}, {"weak_epochs": -1},
    ],
)  # fmt: skip
def test_impossible_ranges_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(FlowersError, match=f"--data.augmentation.{next(iter(wrong))}"):
        Augmentation(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module",
    [
        "raise ImportError('libGL.so.1: cannot open shared object file')",
        pytest.param("raise OSError('libstdc++.so.6: version not found')", marks=pytest.mark.release),
        pytest.param("raise AttributeError('_ARRAY_API not found')", marks=pytest.mark.release),
        "",  # what is left of two packages of which one was removed
    ],
)
def test_without_opencv_torch_augments_and_says_so_once(tmp_path: Path, module: str) -> None:
    (tmp_path / "cv2.py").write_text(module)
    code = """
import torch
from flowers_pl import Augmentation, augment, epoch_draws
from flowers_pl.data.augmentation import augment_torch
photos, draws = torch.rand(4, 3, 32, 32) * 255, torch.from_numpy(epoch_draws(0, 0, 4).draws)
for _ in range(3):
    assert torch.equal(augment(photos, draws, Augmentation()), augment_torch(photos, draws, Augmentation()))
"""
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("so augmentation is four times slower") == len(done.stderr.splitlines()) == 1

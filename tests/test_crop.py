"""Crops, colours and the blur before shrinking, against torchvision and against photos read at the size."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from test_augmentation import STILL, smooth_photos
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from flowers_pl.data.augmentation import BITS, DRAWS, Augmentation, augment, augment_opencv, augment_torch
from flowers_pl.data.decoding import resize_photo
from flowers_pl.data.draws import ALL_DRAWS, epoch_draws
from flowers_pl.data.warps import affine_matrices, blur_passes, blur_taps, crop_windows, warp_matrices

ALL = Augmentation(crop=0.35, contrast=0.3, saturation=0.3)
WAYS = pytest.mark.parametrize("way", [augment_torch, augment_opencv])
MIDDLE = 0.5  # the share of a range that changes nothing, and does not flip

Way = Callable[[Tensor, Tensor, Augmentation, "int | None"], Tensor]


def only(**changed: float) -> Augmentation:
    """Nothing is changed but what is named."""
    still = {name: getattr(STILL, name) for name in ("rotation", "shift", "zoom", "brightness", "flip")}
    return Augmentation(**{**still, **changed})  # type: ignore[arg-type]


def draws_of(*photos: dict[int, float]) -> Tensor:
    """Draws of which only the given ones, by their columns, differ from the middle; shares from 0 to 1."""
    shares = torch.full((len(photos), ALL_DRAWS), MIDDLE, dtype=torch.float64)
    for row, chosen in enumerate(photos):
        for column, share in chosen.items():
            shares[row, column] = share
    return (shares * 2**BITS).round().clamp(max=2**BITS - 1).to(torch.int32)


def some_draws(count: int, seed: int = 4) -> Tensor:
    return torch.from_numpy(epoch_draws(seed, 0, count, ALL_DRAWS).draws)


def colourful(count: int, size: int) -> Tensor:
    """Smooth photos whose colours reach from black to white: uint8."""
    return ((smooth_photos(count, size, size) - 128) * 6 + 128).clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------- crops


def draws_of_window(
    left: int, top: int, width: int, height: int, size: int, least: float
) -> dict[int, float]:
    """The draws that give a crop of whole pixels."""
    area = width * height / size**2
    widest = min(np.log(4 / 3), -np.log(area))
    return {
        7: (area - least) / (1 - least),
        8: (np.log(width / height) / widest + 1) / 2,
        9: left / (size - width),
        10: top / (size - height),
    }


@WAYS
@pytest.mark.parametrize("window", [(8, 4, 40, 32), (16, 24, 40, 40), (1, 2, 48, 60), (0, 20, 44, 36)])
def test_a_crop_is_torchvisions(way: Way, window: tuple[int, int, int, int]) -> None:
    left, top, width, height = window
    photo = smooth_photos(1, 64, 64)
    some = draws_of(draws_of_window(*window, size=64, least=0.2))
    ours = way(photo, some, only(crop=0.2), None)
    expected = TF.resized_crop(photo, top, left, height, width, [64, 64], antialias=False)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at its edge, ours sees the photo around
    assert (ours - expected)[inside].abs().max() < 0.05
    assert (ours - photo).abs().max() > 10


def test_crops_have_torchvisions_ratios_for_their_areas() -> None:
    """Of crops of much the same area: torchvision draws area and ratio together, until one fits."""
    picture, generator = torch.empty(3, 1000, 1000), torch.random.get_rng_state()
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [0.3, 1], [3 / 4, 4 / 3])[2:] for _ in range(8000)]
    )
    torch.random.set_rng_state(generator)
    uniform = some_draws(40_000).double() / 2**BITS
    left, top, width, height = (part.numpy() for part in crop_windows(uniform, 0.3))
    ours_area, ours_ratio = width * height, np.log(width / height)
    area, ratio = theirs.prod(1) / 1e6, np.log(theirs[:, 1] / theirs[:, 0])
    for least, most in ((0.3, 0.5), (0.5, 0.7), (0.78, 0.84), (0.88, 0.94)):
        mine = ours_ratio[(least < ours_area) & (ours_area < most)]
        other = ratio[(least < area) & (area < most)]
        quantiles = np.linspace(0.05, 0.95, 10)
        assert np.quantile(mine, quantiles) == pytest.approx(np.quantile(other, quantiles), abs=0.035)
    assert np.quantile(ours_area, [0, 0.25, 0.5, 1]) == pytest.approx([0.3, 0.475, 0.65, 1], abs=0.01)
    for start, extent in ((left, width), (top, height)):
        assert start.min() >= 0
        assert (start + extent).max() <= 1 + 1e-12
        free = extent < 0.9
        assert np.quantile(start[free] / (1 - extent[free]), [0, 0.5, 1]) == pytest.approx(
            [0, 0.5, 1], abs=0.02
        )


def test_torch_and_numpy_crop_alike_in_float32() -> None:
    some = some_draws(500)
    one = warp_matrices(some.double().numpy() / 2**BITS, ALL, (160, 160))
    other = warp_matrices(some.float() / 2**BITS, ALL, (160, 160))
    assert np.abs(one - other.numpy()).max() < 1e-5


@WAYS
def test_a_crop_is_mirrored_in_its_place(way: Way) -> None:
    photos, crop = smooth_photos(2, 48, 48), {7: 0.2, 8: 0.3, 9: 0.9, 10: 0.1}
    ranges = only(crop=0.35, flip=True)
    straight, mirrored = way(photos[:1].repeat(2, 1, 1, 1), draws_of(crop, {**crop, 5: 0.2}), ranges, 40)
    torch.testing.assert_close(straight.flip(-1), mirrored, atol=0.05, rtol=0)
    assert (straight - mirrored).abs().max() > 5


def test_crop_and_the_other_changes_are_one_matrix() -> None:
    """The crop's matrix after the others', multiplied out."""
    uniform = some_draws(20).double().numpy() / 2**BITS
    both, others = warp_matrices(uniform, ALL, (32, 32)), affine_matrices(uniform, ALL, (32, 32))
    left, top, width, height = crop_windows(uniform, ALL.crop)
    for row in range(20):
        corner = np.array([[2 * left[row] + width[row] - 1], [2 * top[row] + height[row] - 1]])
        crop = np.hstack([np.diag([width[row], height[row]]), corner])
        assert both[row] == pytest.approx(crop @ np.vstack([others[row], [0, 0, 1]]))


# ---------------------------------------------------------------- colours


@WAYS
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_colours_are_torchvisions(way: Way, share: float) -> None:
    photos, factor = colourful(3, 40), 1 + 0.4 * (2 * share - 1)
    unit = photos.float() / 255
    brightness = (only(brightness=0.4), {6: share}, TF.adjust_brightness)
    contrast = (only(contrast=0.4), {11: share}, TF.adjust_contrast)
    saturation = (only(saturation=0.4), {12: share}, TF.adjust_saturation)
    together = unit
    for ranges, chosen, oracle in (brightness, contrast, saturation):
        ours = way(photos, draws_of(*[chosen] * 3), ranges, None)
        assert (ours - 255 * oracle(unit, factor)).abs().max() < 0.1, oracle  # its weight of red is 0.2989
        assert (ours - photos).abs().max() > 10
        together = oracle(together, factor)
    ours = way(
        photos, draws_of(*[{6: share, 11: share, 12: share}] * 3),
        only(brightness=0.4, contrast=0.4, saturation=0.4), None,
    )  # fmt: skip
    assert (ours - 255 * together).abs().max() < 0.15


def test_colours_are_drawn_for_each_photo() -> None:
    photos = colourful(1, 40).repeat(6, 1, 1, 1)
    changed = augment(photos, some_draws(6), only(contrast=0.5), None).std((1, 2, 3))
    assert len(changed.round(decimals=2).unique()) == 6


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_and_floats_are_changed_alike(way: Way, dtype: torch.dtype) -> None:
    photos, some = colourful(6, 40), some_draws(6)
    changed = way(photos, some, ALL, None)
    assert torch.equal(way(photos.to(dtype), some, ALL, None).float(), changed)


# ---------------------------------------------------------------- photos kept larger


@pytest.mark.parametrize("size", [96, 128, 160, 224])
@pytest.mark.parametrize("ranges", [ALL, Augmentation(), ALL.weakened()])
def test_a_gpu_augments_as_a_cpu_does(size: int, ranges: Augmentation) -> None:
    """By the code for GPUs, run on a CPU; 96 pixels from as many and from more, blurred up to twice."""
    photos, some = colourful(12, size), some_draws(12)
    one, other = (way(photos, some, ranges, 96) for way in (augment_torch, augment_opencv))
    assert one.dtype == other.dtype == torch.float32
    assert one.shape == other.shape == (12, 3, 96, 96)
    assert (one - other).abs().mean() < 0.1
    assert (one - other).abs().max() < 3


@WAYS
@pytest.mark.parametrize("size", [112, 128, 160])  # 1.75, 2 and 2.5 times the side
def test_a_shrunk_photo_is_as_sharp_as_one_that_is_read_at_the_size(way: Way, size: int) -> None:
    noise = np.random.default_rng(0).uniform(0, 255, (4, 512, 512, 3)).astype(np.float32)
    full = torch.from_numpy(np.stack([cv2.GaussianBlur(one, (0, 0), 2) for one in noise])).permute(0, 3, 1, 2)
    full = ((full - 128) * 10 + 128).clamp(0, 255).to(torch.uint8)
    kept, read = resize_photo(full, size), resize_photo(full, 64)
    middle = draws_of(*[{}] * 4)
    shrunk = way(kept, middle, only(), 64)
    matrix = np.array([[size / 64, 0, size / 128 - 0.5], [0, size / 64, size / 128 - 0.5]])
    unblurred = np.stack(
        [
            cv2.warpAffine(one, matrix, (64, 64), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            for one in kept.permute(0, 2, 3, 1).float().numpy()
        ]
    )
    blurless = torch.from_numpy(unblurred).permute(0, 3, 1, 2)

    def detail(photos: Tensor) -> float:
        """How much neighbours differ."""
        return float(photos.float().diff(dim=-1).square().mean() / read.float().diff(dim=-1).square().mean())

    assert detail(shrunk) == pytest.approx(1, abs=0.15)
    assert abs(detail(blurless) - 1) > 0.2
    assert (shrunk - read).square().mean() < 0.6 * (blurless - read).square().mean()


def test_photos_are_blurred_only_where_they_shrink() -> None:
    assert blur_passes(Augmentation(zoom=0.9), (160, 160), (160, 160)) == 0  # the original's recipe has none
    assert blur_passes(only(crop=0.35), (224, 224), (160, 160)) == 0  # 1.4 times
    assert blur_passes(only(crop=0.35), (256, 256), (160, 160)) == 1
    uniform = draws_of({7: 0.0}, {7: 0.6}, {7: 1.0}).double().numpy() / 2**BITS
    matrices = warp_matrices(uniform, only(crop=0.35), (160, 160))
    across, down = blur_taps(matrices, 1, (256, 256), (160, 160)).T
    assert across[:2].tolist() == down[:2].tolist() == [0, 0]  # crops of 35 and 74 % of the area
    assert [across[2], down[2]] == pytest.approx([(1.6**2 - 2) / 12] * 2, abs=1e-6)


# ---------------------------------------------------------------- draws and devices


def test_further_draws_leave_the_others_as_they_are() -> None:
    few, all_ = epoch_draws(3, 5, 40), epoch_draws(3, 5, 40, ALL_DRAWS)
    for name in ("order", "keys"):
        assert np.array_equal(getattr(few, name), getattr(all_, name))
    assert np.array_equal(few.draws, all_.draws[:, :DRAWS])
    assert np.array_equal(epoch_draws(3, 5, 9, ALL_DRAWS).draws, all_.draws[:9])
    share = epoch_draws(0, 0, 5000, ALL_DRAWS).draws / 2**BITS
    assert share.min(0) == pytest.approx([0] * ALL_DRAWS, abs=0.01)
    assert share.max(0) == pytest.approx([1] * ALL_DRAWS, abs=0.01)
    assert np.abs(np.corrcoef(share.T) - np.eye(ALL_DRAWS)).max() < 5 / 5000**0.5


def test_further_draws_are_the_same_on_every_machine() -> None:
    assert epoch_draws(0, 1, 1, ALL_DRAWS).draws[0, DRAWS:].tolist() == [
        7655431,
        6700954,
        1176236,
        11266341,
        12020631,
        7896172,
    ]


def test_further_draws_are_not_the_numbers_that_balance_the_classes() -> None:
    stream = np.random.Philox(key=np.array([3, (5 << 2) | 3], dtype=np.uint64))
    balancing = set((stream.random_raw(1000) >> np.uint64(64 - BITS)).tolist())
    drawn = epoch_draws(3, 5, 40, ALL_DRAWS).draws[:, DRAWS:]
    assert len(balancing & set(drawn.ravel().tolist())) < 3


def test_the_original_recipe_is_bit_for_bit_what_it_was() -> None:
    """Version 0.1.0's steps, written out."""
    photos, ranges = colourful(8, 40), Augmentation()
    some = torch.from_numpy(epoch_draws(3, 2, 8).draws)
    uniform = some.numpy().astype(np.float64) / 2**BITS
    matrices = affine_matrices(uniform, ranges, (40, 40))
    scaled = matrices * np.array([20.0, 20.0])[:, None] / np.array([20.0, 20.0, 1.0])
    scaled[:, :, 2] += 20 - 0.5 - scaled[:, :, :2] @ (np.array([20.0, 20.0]) - 0.5)
    factors = torch.from_numpy((1 + ranges.brightness * (2 * uniform[:, 6] - 1)).astype(np.float32))
    for photo, factor, matrix, ours in zip(
        photos, factors, scaled, augment_opencv(photos, some, ranges), strict=True
    ):
        lit = torch.mul(photo.permute(1, 2, 0), factor).clamp_(0, 255)
        warped = cv2.warpAffine(
            lit.numpy(), matrix, (40, 40), borderMode=cv2.BORDER_REPLICATE,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )  # fmt: skip
        assert np.array_equal(warped, ours.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("ranges", [Augmentation(), ALL, ALL.weakened()])
def test_all_is_done_on_the_device(ranges: Augmentation) -> None:
    """On a pretended GPU, where numpy, or a tensor of another device, would raise."""
    with FakeTensorMode():
        photos = torch.empty(4, 3, 128, 128, dtype=torch.uint8, device="cuda")
        some = torch.empty(4, ALL_DRAWS, dtype=torch.int32, device="cuda")
        changed = augment(photos, some, ranges, 64)
        assert (changed.device.type, changed.dtype) == ("cuda", torch.float32)
        assert changed.shape == (4, 3, 64, 64)
        with pytest.raises(RuntimeError, match="device"):
            augment(photos, torch.empty(4, ALL_DRAWS, dtype=torch.int32), ranges, 64)


@WAYS
def test_an_empty_batch_stays_empty(way: Way) -> None:
    some = torch.empty(0, ALL_DRAWS, dtype=torch.int32)
    assert way(torch.empty(0, 3, 16, 16, dtype=torch.uint8), some, ALL, 8).shape == (0, 3, 8, 8)

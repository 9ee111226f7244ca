"""faithfulness.py: a network whose reasons are known must get the scores that it deserves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowers_pl.data.decoding import load_photo
from flowers_pl.data.folder import list_photos
from flowers_pl.explain.activation_maps import class_activation_maps, copied_network
from flowers_pl.explain.faithfulness import faithfulness, rank_correlation
from flowers_pl.explain.figures import faithfulness_figure
from flowers_pl.explain.relevance import centred_map, deletion, insertion, random_maps, ranks, road_scores
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.network.weights import load_weights

SIZE, CELLS = 48, 6


@pytest.fixture
def reds() -> FlowerNet:
    """Class 0 is as likely as there is red. Its feature maps: the red and the green of 6 x 6 cells."""
    network = FlowerNet(2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).eval()
    look = nn.Conv2d(3, 2, 1)
    look.weight.data = torch.tensor([[1.0, -1, 0], [-1, 1, 0]])[..., None, None]
    look.bias = nn.Parameter(torch.tensor([-3.0, 0]))  # strong red alone counts, so that blurring hides some
    network.backbone = nn.Sequential(nn.AvgPool2d(SIZE // CELLS), look, nn.ReLU6())
    network.head = nn.Linear(2, 2)
    network.head.weight.data = torch.tensor([[40.0, 0], [0, 20.0]])
    network.head.bias.data = torch.tensor([-2.0, 0])
    return network


@pytest.fixture
def spots() -> Tensor:
    """Grey photos with one red square each, in a corner."""
    photos = torch.full((4, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    for photo, (row, column) in zip(photos, [(0, 0), (0, 32), (32, 0), (32, 32)], strict=True):
        photo[0, row : row + 16, column : column + 16] = 255
        photo[1:, row : row + 16, column : column + 16] = 0
    return photos


def test_maps_of_the_known_network_are_right(reds: FlowerNet, spots: Tensor) -> None:
    heats = class_activation_maps(reds, spots, [0] * 4)
    assert (heats[0, 2:14, 2:14] > 0.5).all()
    assert (heats[0, 24:, :] == 0).all()


def test_right_maps_beat_random_ones_and_the_centre(reds: FlowerNet, spots: Tensor) -> None:
    report = faithfulness(reds, spots, [0] * 4, steps=9)
    json.dumps(report)
    assert report["photos"] == 4
    maps = report["maps"]
    for other in ("random", "centre"):
        assert maps["gradcam"]["road"] > maps[other]["road"] + 0.1
        assert maps["gradcam"]["deletion_auc"] < maps[other]["deletion_auc"] - 0.1
        assert maps["gradcam"]["insertion_auc"] > maps[other]["insertion_auc"] + 0.02
    assert maps["gradcam"]["better_than_random"] == {"road": 1, "deletion_auc": 1, "insertion_auc": 1}
    assert len(maps["random"]["deletion"]) == 10
    assert report == faithfulness(reds, spots, [0] * 4, steps=9)
    panels = faithfulness_figure(report).axes
    assert [len(panel.lines) for panel in panels[:2]] == [3, 3]
    assert len(panels[2].patches) == 6


def test_curves_run_from_one_picture_to_the_other(reds: FlowerNet, spots: Tensor) -> None:
    heats = ranks(np.stack([centred_map(SIZE)] * 4), random_maps(4, CELLS, SIZE, np.random.default_rng(0)))
    inputs = (spots / 255 - 0.5) / 0.25
    with copied_network(reds) as (network, _), torch.no_grad():
        whole = network(inputs).softmax(1)[:, 0].numpy()
        bare = network(torch.zeros_like(inputs)).softmax(1)[:, 0].numpy()
        deleted = deletion(network, inputs, heats, [0] * 4, 8)
        inserted = insertion(network, inputs, heats, [0] * 4, 8)
    assert deleted.shape == inserted.shape == (4, 9)
    np.testing.assert_allclose(deleted[:, 0], whole, rtol=1e-5)
    np.testing.assert_allclose(deleted[:, -1], bare, rtol=1e-5)
    np.testing.assert_allclose(inserted[:, -1], whole, rtol=1e-5)


def test_ranks_keep_the_order_and_leave_no_two_equal() -> None:
    rng = np.random.default_rng(0)
    heat, tie = rng.random((1, 9, 9), dtype=np.float32), rng.random((1, 9, 9), dtype=np.float32)
    flat = np.maximum(heat - 0.5, 0)
    for found in (ranks(heat, tie), ranks(flat, tie)):
        assert len(np.unique(found)) == 81
        assert (found.min(), found.max()) == (0, 1)
    assert np.array_equal(np.argsort(ranks(heat, tie).ravel()), np.argsort(heat.ravel()))
    zeros = flat[0] == 0
    found = ranks(flat, tie)[0]
    assert found[zeros].max() < found[~zeros].min()
    assert np.array_equal(np.argsort(found[zeros]), np.argsort(tie[0][zeros]))


def test_road_is_the_same_again_and_leaves_the_generator_alone(reds: FlowerNet, spots: Tensor) -> None:
    heats = random_maps(4, CELLS, SIZE, np.random.default_rng(0))
    before = torch.get_rng_state()
    inputs = (spots / 255 - 0.5) / 0.25
    with copied_network(reds) as (network, _):
        first, second = (road_scores(network, inputs, heats, [0] * 4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_baselines_are_as_coarse_as_maps_and_know_nothing() -> None:
    maps = random_maps(50, 5, 80, np.random.default_rng(0))
    assert maps.shape == (50, 80, 80)
    assert 0 <= maps.min() < maps.max() <= 1
    assert np.abs(np.diff(maps, axis=1)).max() < 2 / 16  # smooth: a cell is 16 pixels
    assert np.ptp(maps.mean(0)) < 0.3
    blob = centred_map(9)
    assert blob.argmax() == 4 * 9 + 4
    np.testing.assert_allclose(blob, blob[::-1, ::-1])


def test_a_random_head_changes_maps_that_look_at_the_class(reds: FlowerNet, spots: Tensor) -> None:
    weights = {name: value.clone() for name, value in reds.state_dict().items()}
    mixed = spots.clone()
    mixed[:, 1, 20:30, 20:30] = 255  # something green, for the other feature
    report = rank_correlation(reds, mixed, [0] * 4)
    assert report["spearman"] < 0.9
    assert report["maps"] + report["constant"] == 20
    assert report == rank_correlation(reds, mixed, [0] * 4)
    blind = rank_correlation(reds, mixed, [0] * 4, method="eigencam")  # does not look at the head
    assert blind["spearman"] == pytest.approx(1)
    assert all(torch.equal(value, weights[name]) for name, value in reds.state_dict().items())


def test_the_share_is_unknown_where_no_map_has_an_order(reds: FlowerNet) -> None:
    grey = torch.full((1, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    report = rank_correlation(reds, grey, [0], heads=2)
    assert report == {"spearman": None, "spearman_absolute": None, "heads": 2, "maps": 0, "constant": 2}


@pytest.mark.release
def test_grad_cam_beats_noise_on_real_photos(real_weights: Path, real_photos: Path) -> None:
    """A head fitted to 200 photos; evaluated on others."""
    listed = list_photos(real_photos)
    names = sorted({photo.label for photo in listed})
    members = [[photo for photo in listed if photo.label == name] for name in names]
    fitted, held_out = (
        [photo for some in members for photo in some[part]] for part in (slice(40), slice(40, 44))
    )
    photos, others = (
        torch.stack([load_photo(real_photos / one.path, 160) for one in some]) for some in (fitted, held_out)
    )
    torch.manual_seed(0)  # of the head
    network = FlowerNet(len(names)).eval()
    load_weights(network.backbone, str(real_weights))
    with torch.no_grad():
        features = torch.cat([network.features(some) for some in torch.split(photos, 50)])
    labels = torch.tensor([names.index(one.label) for one in fitted])
    optimizer = torch.optim.Adam(network.head.parameters(), 1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network.head(features), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    maps = faithfulness(network, others)["maps"]
    assert maps["gradcam"]["road"] > maps["random"]["road"] + 0.03
    assert maps["gradcam"]["deletion_auc"] < maps["random"]["deletion_auc"]
    assert maps["gradcam"]["insertion_auc"] > maps["random"]["insertion_auc"]

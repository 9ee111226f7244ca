"""mobilenet.py: what is trainable, what stays frozen, and the dropout that belongs to photos."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowers_pl.network.mobilenet import (
    FlowerNet,
    PhotoDropout,
    keras_layers,
    start_from_nothing,
    uniform_bits,
)


def trainable(network: FlowerNet) -> tuple[int, int]:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return sum(weight.numel() for weight in weights), len(weights)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (0, (6_405, 2)),
        (1, (6_405, 2)),  # the last layer is a ReLU
        (2, (6_405 + 2_560, 4)),
        (30, (1_532_805, 34)),  # Keras's own count for base.layers[-30:] with a Dense(5) on top
        (154, (2_230_277, 158)),
        ("all", (2_230_277, 158)),
    ],
)
def test_top_layers_are_counted_as_keras_does(layers: int, expected: tuple[int, int]) -> None:
    network = FlowerNet(5)
    network.train_top_layers(layers)
    assert trainable(network) == expected


def test_freezing_again_takes_back_what_was_unfrozen() -> None:
    network = FlowerNet(5)
    network.train_top_layers("all")
    network.train_top_layers(0)
    assert trainable(network) == (6_405, 2)


def test_keras_has_154_layers_and_names_30_from_the_top() -> None:
    network = FlowerNet(5)
    order = keras_layers(network.backbone)
    assert len(order) == 154
    assert order[-30] is network.backbone[14].conv[-1]  # block_13_project_BN
    assert sum(layer is None for layer in order) == 1 + 4 + 10  # the input, four paddings, ten additions
    modules = [layer for layer in order if layer is not None]
    assert len(set(modules)) == len(modules)
    leaves = [module for module in network.backbone.modules() if not list(module.children())]
    assert modules == leaves  # every layer once, in torchvision's order


@pytest.mark.parametrize("layers", [-1, 155, "some"])
def test_impossible_numbers_of_layers_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match="0 to 154"):
        FlowerNet(5).train_top_layers(layers)


def test_the_backbone_stays_in_evaluation_mode() -> None:
    network = FlowerNet(2).train()
    assert network.training
    assert network.dropout.training
    assert not any(module.training for module in network.backbone.modules())


def test_photos_are_normalised_inside() -> None:
    network = FlowerNet(3).eval()
    photos = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = (photos / 255 - mean[:, None, None]) / std[:, None, None]
    pooled = nn.functional.adaptive_avg_pool2d(network.backbone(scaled), 1).flatten(1)
    torch.testing.assert_close(network(photos), network.head(pooled))
    torch.testing.assert_close(network(photos.float()), network(photos))


def splitmix64(key: int, count: int) -> list[int]:
    """The reference in plain integers: Steele, Lea & Flood 2014, figure 16; four signed integers a hash."""
    found = []
    for step in range(1, -(-count // 4) + 1):
        state = (key + step * 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        hashed = state ^ (state >> 31)
        found += [(hashed >> (16 * quarter)) % 2**16 for quarter in range(4)]
    return [one - 2**16 * (one >= 2**15) for one in found[:count]]


def test_the_hash_is_splitmix64() -> None:
    keys = [0, 1, -1, 2**62 + 12345, -(2**63)]
    assert uniform_bits(torch.tensor(keys), 7).tolist() == [splitmix64(key % 2**64, 7) for key in keys]


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    keys = torch.randint(-(2**63), 2**63 - 1, (400,), generator=torch.Generator().manual_seed(0))
    dropped = PhotoDropout(0.3).train()(torch.ones(400, 1280), keys)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    share = (dropped == 0).float()
    deviation = (0.3 * 0.7 / share.numel()) ** 0.5
    assert share.mean().item() == pytest.approx(0.3, abs=5 * deviation)
    assert share.mean(0).std().item() == pytest.approx(
        (0.21 / 400) ** 0.5, rel=0.2
    )  # features are independent
    assert share.mean(1).std().item() == pytest.approx(
        (0.21 / 1280) ** 0.5, rel=0.2
    )  # photos are independent


def test_a_photo_meets_the_same_mask_in_any_batch() -> None:
    dropout = PhotoDropout(0.5).train()
    features, keys = torch.rand(6, 50) + 1, torch.arange(6) * 977
    together = dropout(features, keys)
    torch.manual_seed(1)
    assert torch.equal(together[[4, 1]], dropout(features[[4, 1]], keys[[4, 1]]))
    assert not torch.equal(together[0] == 0, together[1] == 0)


def test_dropout_is_out_of_the_way_in_evaluation() -> None:
    features = torch.rand(3, 8)
    assert torch.equal(PhotoDropout(0.5).eval()(features, torch.arange(3)), features)
    with pytest.raises(ValueError, match="less than 1"):
        PhotoDropout(1.0)


def test_starting_from_nothing_gives_features_to_learn_from() -> None:
    torch.manual_seed(0)
    network = FlowerNet(5)
    photos = torch.randint(0, 256, (24, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert network.features(photos).std() < 1e-6  # torchvision's start is useless in evaluation mode
        start_from_nothing(network, photos, batch=8)
        assert network.features(photos).std() > 0.01
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert {norm.momentum for norm in norms} == {0.1}
    assert sum(bool((norm.weight == 0).all()) for norm in norms) == 10  # one for each residual branch


def test_measured_statistics_are_those_of_the_photos() -> None:
    torch.manual_seed(0)
    network = FlowerNet(2)
    photos = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    start_from_nothing(network, photos, batch=8)
    scaled = (photos / 255 - network.mean) / network.std
    first = network.backbone[0][0](scaled)
    norm = network.backbone[0][1]
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-5)

"""The fast way gives what the plain network gives: outputs, and gradients of all that is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flowers_pl.network.fast_frozen import TOLERANCE, FrozenPart
from flowers_pl.network.fast_layers import Cut, conv_norms, find_cut
from flowers_pl.network.fast_trained import TrainedPart
from flowers_pl.network.mobilenet import FlowerNet, TopLayers

SIZE = 64
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}


def network(layers: TopLayers) -> FlowerNet:
    """One whose batch norm does something, training its top layers."""
    torch.manual_seed(0)
    found = FlowerNet(5)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
    found.train_top_layers(layers)
    return found.train()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Photos, labels, keys."""
    generator = torch.Generator().manual_seed(1)
    photos = torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return photos, torch.tensor([0, 1, 2, 3, 4, 0]), torch.arange(6)


def off(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def gradients(net: FlowerNet, logits: Tensor, labels: Tensor) -> list[Tensor]:
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(nn.functional.cross_entropy(logits, labels), trained))


@pytest.mark.parametrize("layers", [0, 2, 3, 30, 31, 40, 127, "all"])
def test_logits_and_gradients_are_the_plain_network_s(layers: TopLayers) -> None:
    """In float64, where only a mistake is larger than 1e-12; 30 cuts between a convolution and its norm, 40
    inside a residual block, 127 between two blocks."""
    net = network(layers).double()
    photos, labels, keys = batch()
    frozen = FrozenPart(net, torch.float64, SIZE)
    expected, found = net(photos, keys), TrainedPart(net, frozen)(frozen(photos), keys)
    assert off(found, expected) < 1e-12
    for one, other in zip(gradients(net, found, labels), gradients(net, expected, labels), strict=True):
        assert off(one, other) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_convolutions_compute_the_same(dtype: torch.dtype) -> None:
    """On a CPU whose torch has oneDNN these are other code than float64 takes."""
    net = network(30)
    photos, labels, keys = batch()
    frozen = FrozenPart(net, dtype, SIZE)
    expected, found = net(photos, keys), TrainedPart(net, frozen)(frozen(photos), keys)
    assert found.dtype == torch.float32
    assert off(found, expected) < CLOSE[dtype]
    pairs = list(zip(gradients(net, found, labels), gradients(net, expected, labels), strict=True))
    assert all(one.dtype == torch.float32 for one, _ in pairs)
    assert sum(off(one, other) for one, other in pairs) / len(pairs) < 3 * CLOSE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_network_that_is_judged_is_frozen_as_a_whole(dtype: torch.dtype) -> None:
    net = network(30).eval()
    photos = batch()[0]
    features = FrozenPart(net.to(torch.promote_types(dtype, torch.float32)), dtype, SIZE, whole=True)(photos)
    assert features.shape == (6, 1280)
    assert features.dtype == torch.promote_types(dtype, torch.float32)
    assert off(features, net.features(photos)) < CLOSE[dtype]


def test_a_photo_s_features_do_not_depend_on_its_company() -> None:
    frozen = FrozenPart(network(30), torch.float32, SIZE)
    photos = batch()[0]
    alone = torch.cat([frozen(one[None]) for one in photos])
    assert off(alone, frozen(photos)) < 1e-6


def test_where_the_fused_operator_is_wrong_or_missing_the_plain_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(TOLERANCE, torch.float32, -1.0)  # nothing is that close
    net = network(30).eval()
    photos = batch()[0]
    with caplog.at_level("INFO"):
        frozen = FrozenPart(net, torch.float32, SIZE, whole=True)
    assert "not fused" in caplog.text
    assert off(frozen(photos), net.features(photos)) < 1e-5


def test_the_frozen_part_is_a_copy() -> None:
    net = network(30)
    photos = batch()[0]
    frozen = FrozenPart(net, torch.float32, SIZE)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = frozen(photos)
    assert not first.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        for weight in net.backbone.parameters():
            weight.zero_()
    assert torch.equal(frozen(photos), first)


def test_where_the_frozen_part_ends() -> None:
    """Keras's top 30 begin with a batch norm whose convolution stays frozen."""
    cuts = {layers: find_cut(conv_norms(network(layers).backbone)) for layers in (0, 3, 30, "all")}
    assert cuts == {0: Cut(52), 3: Cut(51), 30: Cut(41, half=True), "all": Cut(0)}

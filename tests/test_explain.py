"""explain/: maps against closed-form ones and the library's, the model left as found, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from PIL import Image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.cli import explain
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.data.decoding import read_photo, resize_photo
from flowers_pl.data.folder import VAL
from flowers_pl.data.split import Placed
from flowers_pl.explain import activation_maps
from flowers_pl.explain.activation_maps import (
    CLOSED_FORM,
    METHODS,
    class_activation_maps,
    copied_network,
    normalised,
)
from flowers_pl.explain.explanations import Explained, explain_photos
from flowers_pl.explain.figures import explanation_figure, grid_figure, overlay
from flowers_pl.network.mobilenet import FlowerNet, start_from_nothing
from flowers_pl.network.weights import load_weights
from flowers_pl.training.classifier import FlowerClassifier

CLASSES = ["ant", "bee", "cow"]


def some_photos(count: int, size: int = 96) -> Tensor:
    """Colour gradients with a bright square each, so that feature maps differ from place to place."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    photos = F.interpolate(coarse, (size, size), mode="bilinear") * 200
    photos[:, :, size // 8 : size // 2, size // 8 : size // 2] += 55
    return photos.to(torch.uint8)


@pytest.fixture
def network() -> FlowerNet:
    """Untrained, but with features that differ (TRAPS 30): measured statistics, perturbed batch norms."""
    torch.manual_seed(0)
    net = FlowerNet(3).eval()
    start_from_nothing(net, some_photos(16))
    for module in net.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    nn.init.normal_(net.head.weight)
    net.train_top_layers(0)
    return net


def unit(maps: Tensor) -> Tensor:
    low = maps.amin((1, 2), keepdim=True)
    return (maps - low) / (maps - low).amax((1, 2), keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def closed_form(net: FlowerNet, photos: Tensor, targets: list[int]) -> np.ndarray:
    """Zhou et al. 2016: relu(sum_k W[c, k] A_k), scaled, resized and scaled again as the library does."""
    features = net.backbone((photos / 255 - net.mean) / net.std)
    maps = torch.einsum("nkhw,nk->nhw", features, net.head.weight[targets]).relu()
    resized = F.interpolate(unit(maps)[:, None], photos.shape[2:], mode="bilinear")[:, 0]
    return unit(resized).numpy()


def librarys(net: FlowerNet, photos: Tensor, targets: list[int], method: str) -> np.ndarray:
    """Maps of pytorch-grad-cam, by its own backward pass."""
    with copied_network(net) as (network, layer):
        cam = getattr(pytorch_grad_cam, METHODS[method])(network, [layer])
        inputs = normalised(net, photos).requires_grad_()
        return cam(inputs, [ClassifierOutputTarget(target) for target in targets])


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_grad_cam_is_class_activation_mapping(network: FlowerNet, method: str) -> None:
    photos, targets = some_photos(4), [0, 1, 2, 1]
    expected = closed_form(network, photos, targets)
    assert expected.reshape(4, -1).std(1).max() > 0.1  # a map that is the same everywhere would prove nothing
    found = class_activation_maps(network, photos, targets, method)
    assert found.shape == (4, 96, 96)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(found, librarys(network, photos, targets, method), atol=1e-3)


def test_grad_cam_is_class_activation_mapping_with_imagenet_weights(real_weights: Path) -> None:
    torch.manual_seed(0)
    net = FlowerNet(3).eval()
    load_weights(net.backbone, str(real_weights))
    photos, targets = some_photos(3, 160), [2, 0, 1]
    found = class_activation_maps(net, photos, targets)
    np.testing.assert_allclose(found, closed_form(net, photos, targets), atol=1e-3)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_maps_are_for_the_likeliest_class_by_default(network: FlowerNet, method: str) -> None:
    photos = some_photos(4)
    likeliest = network(photos).argmax(1).tolist()
    default = class_activation_maps(network, photos, None, method)
    assert np.array_equal(default, class_activation_maps(network, photos, likeliest, method))
    other = [(index + 1) % 3 for index in likeliest]
    assert not np.allclose(default, class_activation_maps(network, photos, other, method))


def test_a_photo_has_the_same_map_in_any_batch(network: FlowerNet, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = some_photos(5)
    together = class_activation_maps(network, photos.float(), [0, 1, 2, 0, 1])
    monkeypatch.setattr(activation_maps, "BATCH", 2)
    np.testing.assert_allclose(class_activation_maps(network, photos, [0, 1, 2, 0, 1]), together, atol=1e-4)
    assert class_activation_maps(network, photos[:0]).shape == (0, 96, 96)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_gives_maps(network: FlowerNet, method: str) -> None:
    layer = "backbone.2" if method in ("scorecam", "ablationcam") else None  # 24 channels, not 1,280
    found = class_activation_maps(network, some_photos(2, 64), [0, 2], method, layer)
    assert found.shape == (2, 64, 64)
    assert found.min() >= 0
    assert 0.99 < found.max() <= 1


def test_a_batch_norm_is_seen_before_the_relu_behind_it(network: FlowerNet) -> None:
    """The ReLU6 overwrites its input: without care the map would be made from what is left of it."""
    photos = some_photos(1)
    found = class_activation_maps(network, photos, [0], "hirescam", "backbone.18.1")
    with torch.no_grad():
        features = network.backbone[:18]((photos / 255 - network.mean) / network.std)
        before = network.backbone[18][1](network.backbone[18][0](features))
    through = (before > 0) & (before < 6)  # what ReLU6 lets gradients through
    maps = torch.einsum("nkhw,k->nhw", before * through, network.head.weight[0]).relu()
    resized = F.interpolate(unit(maps)[:, None], (96, 96), mode="bilinear")[:, 0]
    np.testing.assert_allclose(found, unit(resized).detach().numpy(), atol=1e-3)


# ---------------------------------------------------------------- callers and the model's state


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_callers_may_have_gradients_off(network: FlowerNet, caller: Any) -> None:
    photos = some_photos(2)
    expected = class_activation_maps(network, photos, [0, 1])
    with caller():
        assert np.array_equal(class_activation_maps(network, photos.clone(), [0, 1]), expected)
        assert not torch.is_grad_enabled()


def test_autocast_and_bfloat16_are_no_obstacle(network: FlowerNet) -> None:
    photos = some_photos(2)
    expected = class_activation_maps(network, photos, [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(class_activation_maps(network, photos, [0, 1]), expected)
    rounded = class_activation_maps(network.to(torch.bfloat16), photos, [0, 1])
    assert network.head.weight.dtype == torch.bfloat16
    assert np.array_equal(class_activation_maps(network.float(), photos, [0, 1]), rounded)


def state(net: nn.Module) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        {name: value.clone() for name, value in net.state_dict().items()},
        {name: (weight.requires_grad, weight.grad) for name, weight in net.named_parameters()},
        {name: module.training for name, module in net.named_modules()},
        {name: [len(getattr(module, hook)) for hook in hooks] for name, module in net.named_modules()},
        {name: getattr(module, "inplace", None) for name, module in net.named_modules()},
    ]


def assert_equal_states(after: list[Any], before: list[Any]) -> None:
    assert all(torch.equal(after[0][name], before[0][name]) for name in before[0])
    for name, (needs, gradient) in before[1].items():
        assert after[1][name][0] == needs
        assert (gradient is None) == (after[1][name][1] is None)
        assert gradient is None or (gradient is after[1][name][1] and bool((gradient == 7).all()))
    assert after[2:] == before[2:]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("layers", [0, 30])
def test_the_model_is_left_as_found(
    network: FlowerNet, layers: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.train_top_layers(layers)
    network.train()
    network.backbone[4].train()  # a mode that neither train() nor eval() would bring back
    network.head.weight.grad = torch.full_like(network.head.weight, 7)
    before, generator = state(network), torch.get_rng_state()
    if fails:
        monkeypatch.setattr(pytorch_grad_cam.LayerCAM, "get_cam_image", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            class_activation_maps(network, some_photos(2), [0, 1], "layercam")
    else:
        for method in ("gradcam", "layercam"):
            class_activation_maps(network, some_photos(2), [0, 1], method)
    assert_equal_states(state(network), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_maps_on_a_gpu_are_those_on_the_cpu(network: FlowerNet) -> None:
    photos = some_photos(3)
    expected = class_activation_maps(network, photos, [0, 1, 2])
    np.testing.assert_allclose(class_activation_maps(network.cuda(), photos, [0, 1, 2]), expected, atol=2e-2)


@pytest.mark.parametrize("layer", ["backbone.19", "petals", "head", "mean", ""])
def test_a_wrong_layer_is_told_with_some_that_exist(network: FlowerNet, layer: str) -> None:
    with pytest.raises(
        FlowersError, match=r"--layer: .*backbone\.0 to backbone\.18.*such as backbone\.1\."
    ) as error:
        class_activation_maps(network, some_photos(1), layer=layer)
    network.get_submodule(str(error.value).rsplit(" ", 1)[1].rstrip("."))


def test_wrong_methods_and_targets_are_told(network: FlowerNet) -> None:
    with pytest.raises(FlowersError, match=r"--method must be one of gradcam, .* not 'x'"):
        class_activation_maps(network, some_photos(1), method="x")
    for targets in ([3], [-1], [0, 1]):
        with pytest.raises(ValueError, match="1 classes from 0 to 2"):
            class_activation_maps(network, some_photos(1), targets)


# ---------------------------------------------------------------- photos and pictures


@pytest.fixture
def model(network: FlowerNet) -> FlowerClassifier:
    module = FlowerClassifier(weights=None)
    module.build(CLASSES, 64)
    module.network = network
    return module


def test_photos_of_any_size_are_explained(model: FlowerClassifier) -> None:
    photos = [
        torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in ((40, 90), (200, 70), (64, 64))
    ]
    found = explain_photos(model, photos, ["ant", None, "cow"])
    assert [overlay(one.photo, one.heat).shape for one in found] == [(40, 90, 3), (200, 70, 3), (64, 64, 3)]
    assert [one.truth for one in found] == ["ant", None, "cow"]
    for one, photo in zip(found, photos, strict=True):
        assert one.target == one.predicted == max(one.probabilities, key=one.probabilities.__getitem__)
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert one.photo is photo
    assert [one.target for one in explain_photos(model, photos, target="bee")] == ["bee"] * 3
    assert explain_photos(model, []) == []
    with pytest.raises(FlowersError, match="--target must be one of ant, bee, cow, not 'fly'"):
        explain_photos(model, photos, target="fly")


def test_a_photo_is_of_the_class_that_the_split_says(
    model: FlowerClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie in a folder of its class's, and a review may have given it another label."""
    wanted = {"ant/2019/a.png": "ant", "bee/b.png": "cow"}
    for number, path in enumerate(wanted):
        (tmp_path / path).parent.mkdir(parents=True)
        Image.fromarray(some_photos(2)[number].permute(1, 2, 0).numpy()).save(tmp_path / path)
    placed = [Placed(path, label, VAL, path) for path, label in wanted.items()]
    monkeypatch.setattr(explain, "split_of", lambda ckpt: placed)
    monkeypatch.setattr(explain, "read_checkpoint", lambda ckpt: {KEY: {"data": {"root": str(tmp_path)}}})
    names, photos, squares, truths = explain._to_explain(tmp_path / "best.ckpt", model, None, 2, False)
    assert dict(zip(names, truths, strict=True)) == wanted
    assert [tuple(photo.shape[1:]) for photo in photos[1:]] == [(160, 160)]  # only the first is shown whole
    assert torch.equal(squares[0], resize_photo(photos[0], model.image_size))


def test_faithfulness_is_measured_on_all_classes_and_files_that_are_no_photos_do_not_count(
    model: FlowerClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "a" / f"{number}.xml").write_text("no photo")
        file = tmp_path / "images" / model.classes[number // 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(some_photos(6)[number].permute(1, 2, 0).numpy()).save(file)
    measured: list[tuple[int, list[int]]] = []

    def measure(model: FlowerClassifier, squares: Tensor, targets: list[int], *_: Any) -> None:
        measured.append((len(squares), targets))

    monkeypatch.setattr(FlowerClassifier, "load", lambda ckpt: model)
    monkeypatch.setattr(explain, "_measure", measure)
    explain.explain(str(tmp_path / "best.ckpt"), str(tmp_path / "images"), most=6, faithfulness=3)
    with np.load(tmp_path / "gradcam" / "maps.npz") as saved:
        paths = saved["paths"].tolist()
    assert len(paths) == 6
    found = [model.classes[target] for target in measured[0][1]]
    assert measured[0][0] == 3
    explained = explain_photos(model, [read_photo(tmp_path / "images" / path) for path in paths])
    assert found == [explained[row].target for row in (0, 2, 5)]


def test_hot_is_red_and_cold_is_blue() -> None:
    """The original notebook saved OpenCV's BGR as RGB: its hot places were blue."""
    heat = np.zeros((8, 8), np.float32)
    heat[:, 4:] = 0.95
    laid = overlay(torch.full((3, 80, 160), 128, dtype=torch.uint8), heat).astype(int)
    assert (laid[:, -20:, 0] > laid[:, -20:, 2] + 60).all()
    assert (laid[:, :20, 2] >= laid[:, :20, 0]).all()
    pure_red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    pure_red[0] = 255
    assert (
        overlay(pure_red, heat, strength=0)[0, 0] == [255, 0, 0]
    ).all()  # nor are the photo's channels swapped


def explained(truth: str | None, predicted: str, shape: tuple[int, int] = (30, 50)) -> Explained:
    shares = {name: 0.8 if name == predicted else 0.1 for name in CLASSES}
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    return Explained(torch.full((3, *shape), 99, dtype=torch.uint8), heat, shares, predicted, truth)


def test_the_example_shows_all_at_the_photos_own_size() -> None:
    figure = explanation_figure(explained("bee", "cow", (30, 50)), most=2)
    pictures = [axes.images[0].get_array() for axes in figure.axes[:3]]
    assert [np.asarray(picture).shape[:2] for picture in pictures] == [(30, 50)] * 3
    assert [bar.get_width() for bar in figure.axes[3].patches] == [0.8, 0.1]  # type: ignore[attr-defined]
    assert figure.get_suptitle() == "predicted cow, truth bee"


def test_the_grid_has_rows_of_classes_with_right_and_wrong_ones() -> None:
    some = [explained("bee", "bee")] * 5 + [explained("bee", "cow")] * 3 + [explained("cow", "cow")]
    figure = grid_figure(some, CLASSES, columns=4)
    *grid, bar = figure.axes
    titles = [axes.get_title() for axes in grid]
    assert titles == ["bee 80%"] * 2 + ["wrong: cow 80%"] * 2 + ["cow 80%", "", "", ""]
    assert "evidence for the class" in bar.get_xlabel()
    assert figure.get_suptitle().endswith("(5 of them shown)")
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["bee", "cow"]
    unknown = grid_figure([explained(None, "ant")], CLASSES)
    assert unknown.axes[0].get_title() == "ant 80%"
    assert "shown" not in unknown.get_suptitle()
    grid_figure([], CLASSES)

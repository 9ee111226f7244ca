"""Class activation maps: which parts of a photo are evidence for a class.

At the last block of the backbone, which pooling and one linear layer follow, Grad-CAM and two of its
relatives equal class activation mapping, which is computed here. All else is left to pytorch-grad-cam, on a
copy of the network (9 MB, 20 ms): the library changes the mode of a model, its hooks and its gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.training.classifier import FlowerClassifier

METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
}
"""Classes of pytorch-grad-cam. The last two run the network once per channel: 1,280 times by default."""

CLOSED_FORM = ("gradcam", "hirescam", "xgradcam")  # equal at the last block: its gradients are constant
BATCH = 32
BATCH_OF = {"scorecam": 1, "ablationcam": 1}  # 1,280 masked copies of one photo of 160 pixels are 390 MB


class CopiedNetwork(NamedTuple):
    """A copy of a network to compute maps with.

    Args:
        network: in evaluation mode, frozen, float32; takes normalised photos.
        layer: the module in it whose output the maps are made from.
    """

    network: FlowerNet
    layer: nn.Module


@contextmanager
def copied_network(model: FlowerClassifier | FlowerNet, layer: str | None = None) -> Iterator[CopiedNetwork]:
    """Copy a network, and switch gradients on and autocast off while the copy is used.

    It takes photos that are normalised already (`normalised`), because the library's methods that hide pixels
    put zeros or noise in their place, and mean the network's scale by that. Activations are never overwritten
    in place: the library keeps views of them, so that a batch norm would be seen after the ReLU6 behind it.

    Args:
        model: on any device, in any mode; it is not changed.
        layer: dotted name of a module inside the network; None for the last block of the backbone.

    Raises:
        FlowersError: there is no such layer.
    """
    source = _network_of(model)
    device = source.head.weight.device
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        network = copy.deepcopy(source).float().requires_grad_(False).eval()
        network.mean.zero_()
        network.std.fill_(1 / 255)
        for module in network.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = False
        yield CopiedNetwork(network, _find_layer(network, layer))


def normalised(model: FlowerClassifier | FlowerNet, photos: Tensor) -> Tensor:
    """Normalise photos, (N, 3, H, W), 0 to 255, as the network does: float32, on the model's device."""
    network = _network_of(model)
    with torch.inference_mode(False), torch.no_grad():
        mean, std = network.mean.float(), network.std.float()
        return (photos.to(mean.device, torch.float32) / 255 - mean) / std


def _network_of(model: FlowerClassifier | FlowerNet) -> FlowerNet:
    return model.network if isinstance(model, FlowerClassifier) else model


def _find_layer(network: FlowerNet, name: str | None) -> nn.Module:
    try:
        return network.backbone[-1] if name is None else network.get_submodule(name)
    except AttributeError:
        raise _no_such_layer(network, name) from None


def _no_such_layer(network: FlowerNet, name: str | None) -> FlowersError:
    last = len(network.backbone) - 1
    inner = [name for name, _ in network.named_modules() if name.startswith("backbone.1.")][-1]
    return FlowersError(
        f"--layer: {name!r} is not a layer of the network that gives feature maps; try one of backbone.0 to"
        f" backbone.{last}, or a layer inside one, such as {inner}."
    )


def import_grad_cam(feature: str) -> ModuleType:
    """Import pytorch-grad-cam, which takes half a second and imports OpenCV.

    Args:
        feature: what needs it, for the message.

    Raises:
        FlowersError: it or OpenCV cannot be imported.
    """
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise FlowersError(
            f"{feature} needs OpenCV, which cannot be imported here ({error}); install"
            " opencv-python-headless, or use --method gradcam without --layer and --faithfulness."
        ) from error
    return pytorch_grad_cam


def class_activation_maps(
    model: FlowerClassifier | FlowerNet,
    photos: Tensor,
    targets: Sequence[int] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
) -> np.ndarray:
    """Compute heat maps of the evidence for a class.

    Each map is scaled to reach from 0 to 1, so maps do not show how strong the evidence is; where there is no
    evidence for the class, the map is 0 everywhere. At the default layer Grad-CAM is class activation
    mapping, relu(sum_k W[c, k] A_k) (Zhou et al. 2016; Selvaraju et al. 2017, section 3.1). EigenCAM does not
    depend on the class, and the sign of its maps is arbitrary.

    Args:
        model: a network on any device, frozen or not; it is not changed.
        photos: (N, 3, H, W), RGB, values 0 to 255: uint8, or float.
        targets: the class that each photo's map is for; None for the likeliest.
        method: a key of `METHODS`.
        layer: dotted name of a module inside the network, such as "backbone.17"; None for the last block.

    Returns:
        float32 (N, H, W), 0 to 1.

    Raises:
        FlowersError: there is no such method or layer, or it needs OpenCV, which is not there.
        ValueError: `targets` are not N classes of the network.
    """
    if method not in METHODS:
        raise FlowersError(f"--method must be one of {', '.join(METHODS)}, not {method!r}.")
    with copied_network(model, layer) as (network, module):
        _check_targets(targets, len(photos), network.head.out_features)
        inputs = normalised(model, photos)
        if module is network.backbone[-1] and method in CLOSED_FORM:
            size, compute = BATCH, _closed_form
        else:
            size, compute = BATCH_OF.get(method, BATCH), _library_maps(network, module, method, layer)
        maps = [np.empty((0, *photos.shape[2:]), np.float32)]
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            maps.append(compute(network, inputs[part], None if targets is None else targets[part]))
    return np.concatenate(maps)


@torch.no_grad()
def _closed_form(network: FlowerNet, inputs: Tensor, targets: Sequence[int] | None) -> np.ndarray:
    """Compute relu(sum_k W[c, k] A_k), scaled before and after it is resized, as the library does."""
    features = network.backbone(inputs)
    chosen = network.head(features.mean((2, 3))).argmax(1) if targets is None else list(targets)
    maps = torch.einsum("nkhw,nk->nhw", features, network.head.weight[chosen]).relu()
    return scaled_maps(maps, inputs.shape[2:]).cpu().numpy()


def scaled_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps of evidence, float (N, h, w), to `size`, (N, H, W), to reach from 0 to 1."""
    return _scaled(F.interpolate(_scaled(maps)[:, None], size, mode="bilinear")[:, 0])


def _scaled(maps: Tensor) -> Tensor:
    """Scale maps, (N, h, w), to reach from 0 to 1."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)


def _library_maps(network: FlowerNet, module: nn.Module, method: str, layer: str | None) -> Any:
    """Return a function like `_closed_form` for any method and layer, by pytorch-grad-cam."""
    library = import_grad_cam(f"--method {method}" if layer is None else "--layer")
    module.register_forward_hook(lambda _, __, maps: _begin_graph(network, layer, maps))
    cam = getattr(library, METHODS[method])(network, [module])
    target = library.utils.model_targets.ClassifierOutputTarget

    def compute(_: FlowerNet, inputs: Tensor, targets: Sequence[int] | None) -> np.ndarray:
        return cam(inputs, None if targets is None else [target(index) for index in targets])

    return compute


def _begin_graph(network: FlowerNet, layer: str | None, maps: Any) -> Tensor:
    """Let gradients begin at the layer: none are needed before it, and a frozen backbone would give none."""
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise _no_such_layer(network, layer)
    return maps.detach().requires_grad_()


def _check_targets(targets: Sequence[int] | None, num_photos: int, num_classes: int) -> None:
    if targets is not None and (
        len(targets) != num_photos or not all(0 <= target < num_classes for target in targets)
    ):
        raise ValueError(
            f"targets must be {num_photos} classes from 0 to {num_classes - 1}, not {list(targets)}"
        )

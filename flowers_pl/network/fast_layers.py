"""List MobileNetV2's convolutions, each with its batch norm, and find where the frozen part ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual


class ConvNorm(NamedTuple):
    """A convolution, its batch norm, and what follows them.

    Args:
        conv: without a bias.
        norm: in evaluation mode.
        relu: whether a ReLU6 follows.
        opens: whether it is the first convolution of a block.
        adds: whether the block's input is added to the result.
        residual: whether its block ends with such an addition.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: bool
    opens: bool = True
    adds: bool = False
    residual: bool = False

    @property
    def mean(self) -> Tensor:
        """Return the running mean, (C,)."""
        return cast(Tensor, self.norm.running_mean)

    @property
    def rate(self) -> Tensor:
        """Return one over the running standard deviation, (C,)."""
        return (cast(Tensor, self.norm.running_var) + self.norm.eps).rsqrt()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the convolution that the two are equal to."""
        scale = self.norm.weight * self.rate
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - self.mean * scale


def conv_norms(backbone: nn.Sequential) -> list[ConvNorm]:
    """List the 52 convolutions of MobileNetV2 in order."""
    layers: list[ConvNorm] = []
    for block in backbone:
        parts = list(block.conv) if isinstance(block, InvertedResidual) else [block]
        steps: list[Any] = [
            step
            for part in parts
            for step in (part.children() if isinstance(part, nn.Sequential) else [part])
        ]
        residual = isinstance(block, InvertedResidual) and block.use_res_connect
        convs = [index for index, step in enumerate(steps) if isinstance(step, nn.Conv2d)]
        for index in convs:
            relu = index + 2 < len(steps) and isinstance(steps[index + 2], nn.ReLU6)
            adds = residual and index == convs[-1]
            layers.append(ConvNorm(steps[index], steps[index + 1], relu, index == 0, adds, residual))
    return layers


@dataclass(frozen=True)
class Cut:
    """The end of the frozen part.

    Args:
        layers: number of convolutions that are frozen together with their batch norms.
        half: whether the next convolution is frozen too, but not its batch norm.
    """

    layers: int
    half: bool = False


def find_cut(layers: list[ConvNorm]) -> Cut:
    """Find the longest frozen start of the backbone that does not end inside a residual block."""
    for index, layer in enumerate(layers):
        trains_conv = layer.conv.weight.requires_grad
        if trains_conv or layer.norm.weight.requires_grad or layer.norm.bias.requires_grad:
            if layer.residual:
                return Cut(max(start for start in range(index + 1) if layers[start].opens))
            return Cut(index, half=not trains_conv)
    return Cut(len(layers))


def geometry(conv: nn.Conv2d) -> tuple[list[int], list[int], int]:
    """Return stride, padding and groups of a convolution."""
    return list(conv.stride), list(conv.padding), conv.groups  # type: ignore[arg-type]

"""MobileNetV2 as a row of convolutions, each with its batch norm, and where its frozen part ends."""

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
        opens: whether it is the first of a block.
        adds: whether the block's input is added to what comes out.
        residual: whether it stands in a block that ends with such an addition.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: bool
    opens: bool = True
    adds: bool = False
    residual: bool = False

    @property
    def mean(self) -> Tensor:
        """The norm's stored mean, (C,)."""
        return cast(Tensor, self.norm.running_mean)

    @property
    def rate(self) -> Tensor:
        """One over the norm's stored deviation, (C,)."""
        return (cast(Tensor, self.norm.running_var) + self.norm.eps).rsqrt()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does what both do."""
        scale = self.norm.weight * self.rate
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - self.mean * scale


def conv_norms(backbone: nn.Sequential) -> list[ConvNorm]:
    """The 52 convolutions of MobileNetV2, in order."""
    found: list[ConvNorm] = []
    for block in backbone:
        parts = list(block.conv) if isinstance(block, InvertedResidual) else [block]
        flat: list[Any] = [
            step
            for part in parts
            for step in (part.children() if isinstance(part, nn.Sequential) else [part])
        ]
        residual = isinstance(block, InvertedResidual) and block.use_res_connect
        convs = [place for place, step in enumerate(flat) if isinstance(step, nn.Conv2d)]
        for place in convs:
            relu = place + 2 < len(flat) and isinstance(flat[place + 2], nn.ReLU6)
            last = place == convs[-1]
            found.append(
                ConvNorm(flat[place], flat[place + 1], relu, place == 0, residual and last, residual)
            )
    return found


@dataclass(frozen=True)
class Cut:
    """Where the frozen part ends.

    Args:
        layers: so many convolutions with their batch norms are frozen.
        half: whether the next convolution is, too, but not its batch norm.
    """

    layers: int
    half: bool = False


def find_cut(layers: list[ConvNorm]) -> Cut:
    """The longest frozen start of the backbone that leaves no residual connection open."""
    for place, one in enumerate(layers):
        conv, norm = (
            one.conv.weight.requires_grad,
            one.norm.weight.requires_grad or one.norm.bias.requires_grad,
        )
        if conv or norm:
            if one.residual:
                while not layers[place].opens:
                    place -= 1
                return Cut(place)
            return Cut(place, half=not conv)
    return Cut(len(layers))


def geometry(conv: nn.Conv2d) -> tuple[list[int], list[int], int]:
    """Stride, padding and groups."""
    return list(conv.stride), list(conv.padding), conv.groups  # type: ignore[arg-type]

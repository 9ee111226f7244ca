"""The same function as `FlowerNet`, computed faster.

What is frozen is a copy: batch norm folded into the convolutions, kept out of autograd, in the precision
that is asked for, each convolution fused with the ReLU6 or the addition behind it (oneDNN, on a CPU).
What is trained uses the network's own parameters, and folds their batch norm anew at each step, with
gradients for all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import InvertedResidual

from flowers_pl.mobilenet import FlowerNet

log = logging.getLogger(__name__)
LARGE = 2**18  # bytes of a photo's map that make a core's cache overflow with a whole chunk
ONEDNN = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # what it computes in; how far it may be off, relative


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


class FrozenPart:
    """The frozen start of a network, as a function of photos: a copy, made once.

    Args:
        network: what is copied; it stays as it is.
        dtype: what is computed in: float32, bfloat16 or float64.
        size: pixels a side of the photos.
        whole: take all of the backbone for frozen, and pool: for a network that is judged, not trained.
    """

    def __init__(self, network: FlowerNet, dtype: torch.dtype, size: int, whole: bool = False) -> None:
        layers = conv_norms(network.backbone)
        self.cut = Cut(len(layers)) if whole else find_cut(layers)
        self.chunk = 32 // dtype.itemsize  # photos at a time on one core, whose maps fit its cache (measured)
        self.pools, self.dtype = self.cut.layers == len(layers), dtype
        self.device = network.mean.device
        std = 255 * network.std.to(torch.float64)
        middle = (255 * network.mean.to(torch.float64)).expand(3, size, size)
        self._middle = (
            middle[None]
            .to(torch.float64 if dtype == torch.float64 else torch.float32)
            .contiguous(memory_format=torch.channels_last)
        )
        self._std = std.to(self._middle.dtype)
        with torch.no_grad():
            self._convs = [_Conv(one, *one.folded(), dtype) for one in layers[: self.cut.layers]]
            if self.cut.half:
                one = layers[self.cut.layers]._replace(relu=False)
                self._convs.append(_Conv(one, one.conv.weight, None, dtype))
            if self._convs:  # the first convolution divides by the deviation
                self._convs[0].weight = self._convs[0].weight.double().div(std.to(self.device)).to(dtype)
        self._large = 0
        self._prepare(size)

    def _prepare(self, size: int) -> None:
        """Bring the weights into oneDNN's layout, if it does here what it should."""
        for conv in self._convs:
            conv.weight = conv.weight.contiguous(memory_format=torch.channels_last)
        if self.device.type != "cpu" or self.dtype not in ONEDNN or not self._convs:
            return
        trial = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255
        expected = self(trial)
        plain = [(conv.weight, conv.plain) for conv in self._convs]
        try:
            for conv in self._convs:
                conv.plain = False
            off = (self(trial).float() - expected.float()).abs().max() / expected.float().abs().max()
            if not off <= ONEDNN[self.dtype]:
                raise RuntimeError(f"off by {off:.2g}")
            self._large = self._count_large(size)
        except (RuntimeError, AttributeError, TypeError, NotImplementedError) as reason:
            log.info(
                "Convolutions are not fused on this machine (%s): slower, but right.",
                str(reason).split("\n")[0],
            )
            for conv, (weight, as_it_was) in zip(self._convs, plain, strict=True):
                conv.weight, conv.plain = weight, as_it_was

    def _count_large(self, size: int) -> int:
        """How many convolutions, to the end of a block, make maps of over LARGE bytes a photo: they run on a
        few photos at a time."""
        found, side = 0, size
        for place, conv in enumerate(self._convs):
            side = -(-side // conv.stride[0])
            if conv.channels * side * side * self.dtype.itemsize > LARGE:
                found = place + 1
        while found < len(self._convs) and not self._convs[found].opens:
            found += 1
        return found

    @torch.no_grad()
    def __call__(self, photos: Tensor) -> Tensor:
        """What the trained part takes.

        Args:
            photos: (N, 3, size, size), RGB: uint8, or float on the same scale of 0 to 255.

        Returns:
            Maps (N, C, h, w) in `dtype`; pooled features (N, 1280), float32 at least, where all is frozen.
        """
        maps = (photos - self._middle).to(self.dtype, memory_format=torch.channels_last)
        if not self._convs:
            return (maps / self._std).to(self.dtype)
        if self._large:
            maps = torch.cat([_run(self._convs[: self._large], few) for few in maps.split(self.chunk // 4)])
        maps = _run(self._convs[self._large :], maps)
        return pool(maps) if self.pools else maps


def _run(convs: list[_Conv], maps: Tensor) -> Tensor:
    block = maps
    for conv in convs:
        if conv.opens:
            block = maps
        maps = conv(maps, block if conv.adds else None)
    return maps


class _Conv:
    """A convolution with what follows it, ready to run."""

    def __init__(self, one: ConvNorm, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight, self.bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        self.relu, self.opens, self.adds, self.plain = one.relu, one.opens, one.adds, True
        self.stride, self.padding, self.groups = _geometry(one.conv)
        self.channels = one.conv.out_channels
        self._packed = False

    def __call__(self, maps: Tensor, block: Tensor | None) -> Tensor:
        """Convolve; `block` is added to the result, in place where that is faster."""
        if self.plain:
            found = F.conv2d(maps, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
            found = found.clamp_(0, 6) if self.relu else found
            return found if block is None else found + block
        if not self._packed:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, [1, 1], self.groups, list(maps.shape)
            )
            self._packed = True
        if block is None:
            return fused_conv(maps, self.weight, self.bias, self.stride, self.padding, self.groups, self.relu)
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
            block, maps, self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups,
            "add", 1.0, None, [], None,
        )  # fmt: skip


def _geometry(conv: nn.Conv2d) -> tuple[list[int], list[int], int]:
    return list(conv.stride), list(conv.padding), conv.groups  # type: ignore[arg-type]


def fused_conv(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    groups: int,
    relu: bool,
) -> Tensor:
    """A convolution and, if `relu`, a ReLU6, in one pass of oneDNN; the operator that torch.compile's frozen
    graphs use on a CPU."""
    return torch.ops.mkldnn._convolution_pointwise.default(  # type: ignore[no-any-return]
        maps, weight, bias, padding, stride, [1, 1], groups,
        "hardtanh" if relu else "none", [0.0, 6.0] if relu else [], "",
    )  # fmt: skip


def pool(maps: Tensor) -> Tensor:
    """Mean over the places: (N, C, h, w) to (N, C), in float32 at least."""
    return maps.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


class TrainedPart:
    """What follows the frozen part: on the network's own parameters, so that they get the gradients.

    Args:
        network: holds the parameters.
        frozen: what comes before.
    """

    def __init__(self, network: FlowerNet, frozen: FrozenPart) -> None:
        self.network, self.half, self.dtype = network, frozen.cut.half, frozen.dtype
        self.layers = conv_norms(network.backbone)[frozen.cut.layers :]
        self.fused = bool(frozen._convs) and not frozen._convs[0].plain

    def __call__(self, maps: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits, float (N, classes), of what the frozen part gave.

        Args:
            maps: from `FrozenPart`.
            keys: int64 (N,), one a photo, for the dropout.
        """
        network = self.network
        with torch.autocast(maps.device.type, enabled=False):
            features = pool(self._maps(maps)) if self.layers else maps
            return network.head(network.dropout(features, keys))  # type: ignore[no-any-return]

    def _maps(self, maps: Tensor) -> Tensor:
        block = maps
        for place, one in enumerate(self.layers):
            if one.opens:
                block = maps
            if place == 0 and self.half:
                norm = one.norm
                maps = F.batch_norm(
                    maps.to(norm.weight.dtype), norm.running_mean, norm.running_var, norm.weight, norm.bias,
                    False, 0.0, norm.eps,
                ).to(self.dtype)  # fmt: skip
                maps = F.relu6(maps) if one.relu else maps
            else:
                maps = _ConvNormRelu.apply(
                    maps, one.conv.weight, one.norm.weight, one.norm.bias, one, self.fused
                )
            if one.adds:
                maps = maps + block
        return maps


class _ConvNormRelu(torch.autograd.Function):
    """Convolution, batch norm in evaluation mode and ReLU6 as one convolution with folded weights.

    y = relu6(conv(x, w s) + b - m s), with s = g / sqrt(v + eps). With the gradients of folded weight and
    bias, dW and dB: dw = dW s; db = dB; dg = (sum of dW w over a channel - dB m) / sqrt(v + eps).
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, gain: Tensor, shift: Tensor, one: ConvNorm, fused: bool
    ) -> Tensor:
        rate = one.rate
        scale = gain * rate
        folded = torch.empty_like(weight, dtype=maps.dtype, memory_format=torch.channels_last)
        torch.mul(weight, scale[:, None, None, None], out=folded)
        bias = (shift - one.mean * scale).to(maps.dtype)
        stride, padding, groups = _geometry(one.conv)
        if fused:
            found = fused_conv(maps, folded, bias, stride, padding, groups, one.relu)
        else:
            found = F.conv2d(maps, folded, bias, stride, padding, 1, groups)
            found = found.clamp_(0, 6) if one.relu else found
        ctx.one = one
        ctx.save_for_backward(maps, folded, found if one.relu else maps, weight, scale, rate)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, folded, found, weight, scale, rate = ctx.saved_tensors
        one, (to_maps, to_weight, to_gain, to_shift) = ctx.one, ctx.needs_input_grad[:4]
        if not len(maps):  # a rank without a photo in a short batch: torch's own backward fails (2.14)
            like = (maps, weight, scale, scale)
            return *(torch.zeros_like(one) for one in like), None, None
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if one.relu:
            gradient = torch.ops.aten.hardtanh_backward(gradient, found, 0, 6)
        d_maps, d_folded = _conv_backward(gradient, maps, folded, one.conv, to_maps, to_weight or to_gain)
        d_weight = d_gain = d_shift = None
        if to_gain or to_shift:
            d_shift = gradient.sum((0, 2, 3)).to(scale.dtype)
        if to_weight or to_gain:
            d_weight = cast(Tensor, d_folded).to(weight.dtype)
        if to_gain:
            dots = torch.linalg.vecdot(cast(Tensor, d_weight).flatten(1), weight.flatten(1))
            d_gain = (dots - cast(Tensor, d_shift) * one.mean) * rate
        if to_weight:
            d_weight = cast(Tensor, d_weight) * scale[:, None, None, None]
        return d_maps, d_weight if to_weight else None, d_gain, d_shift if to_shift else None, None, None


def _conv_backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, conv: nn.Conv2d, to_maps: bool, to_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution; of a pointwise one by products of matrices, which is a tenth faster."""
    stride, padding, groups = _geometry(conv)
    if conv.kernel_size != (1, 1) or stride != [1, 1]:
        found = torch.ops.aten.convolution_backward(
            gradient, maps, weight, None, stride, padding, [1, 1], False, [0, 0], groups,
            [to_maps, to_weight, False],
        )  # fmt: skip
        return found[0], found[1]
    rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
    d_maps = d_weight = None
    if to_maps:
        n, _, height, width = gradient.shape
        d_maps = (rows @ weight.flatten(1)).view(n, height, width, -1).permute(0, 3, 1, 2)
    if to_weight:
        d_weight = (rows.t() @ maps.permute(0, 2, 3, 1).flatten(0, 2))[:, :, None, None]
    return d_maps, d_weight

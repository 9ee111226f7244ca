"""The frozen start of a network, computed fast.

It is a copy: batch norm folded into the convolutions, kept out of autograd, in the precision that is asked
for, each convolution fused with the ReLU6 or the addition behind it (oneDNN, on a CPU).
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.network.fast_layers import ConvNorm, Cut, conv_norms, find_cut, geometry
from flowers_pl.network.mobilenet import FlowerNet

log = logging.getLogger(__name__)
LARGE = 2**18  # bytes of a photo's map that make a core's cache overflow with a whole chunk
ONEDNN = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # what it computes in; how far it may be off, relative


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
        self.share = self.cut.layers / len(layers)  # of the backbone's convolutions
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

    @property
    def fused(self) -> bool:
        """Whether oneDNN's fused convolutions do here what they should."""
        return bool(self._convs) and not self._convs[0].plain

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
        self.stride, self.padding, self.groups = geometry(one.conv)
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

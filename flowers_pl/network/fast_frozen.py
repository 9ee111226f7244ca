"""Compute the frozen part of a network fast.

`FrozenPart` is a copy: batch norm is folded into the convolutions, nothing is recorded for autograd, the
precision is the requested one, and on a CPU oneDNN fuses each convolution with the ReLU6 or the addition that
follows it. oneDNN's operators are private to torch: `FrozenPart` compares them with the plain ones before it
uses them, and stays with the plain ones where they are missing or wrong.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.network.fast_layers import ConvNorm, Cut, conv_norms, find_cut, geometry
from flowers_pl.network.mobilenet import FlowerNet

log = logging.getLogger(__name__)
LARGE = 2**18  # bytes of one photo's activations, above which those of a chunk overflow a core's cache
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # relative, of oneDNN; its dtypes


class FrozenPart:
    """The frozen part of a network as a function of photos, copied when it is constructed.

    Args:
        network: the network to copy; it is not changed.
        dtype: of the computation: float32, bfloat16 or float64.
        size: side of the photos in pixels.
        whole: treat the whole backbone as frozen and pool its output, to evaluate a network.

    >>> import torch
    >>> network = FlowerNet(5)
    >>> network.train_top_layers(30)
    >>> frozen = FrozenPart(network, torch.float32, size=64)
    >>> frozen(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([2, 160, 2, 2])
    >>> whole = FrozenPart(network, torch.float32, size=64, whole=True)
    >>> whole(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, network: FlowerNet, dtype: torch.dtype, size: int, whole: bool = False) -> None:
        layers = conv_norms(network.backbone)
        self.cut = Cut(len(layers)) if whole else find_cut(layers)
        self.chunk = 32 // dtype.itemsize  # photos at a time on one core; measured: they fit its cache
        self.share = self.cut.layers / len(layers)  # of the backbone's convolutions
        self.pools, self.dtype = self.cut.layers == len(layers), dtype
        self.device = network.mean.device
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        std = 255 * network.std.cpu().double()  # not every device has float64
        mean = (255 * network.mean.cpu().double()).expand(3, size, size)[None]
        self._mean = mean.to(exact).contiguous(memory_format=torch.channels_last).to(self.device)
        self._std = std.to(exact).to(self.device)
        with torch.no_grad():
            self._convs = [_Conv(layer, *layer.folded(), dtype) for layer in layers[: self.cut.layers]]
            if self.cut.half:
                layer = layers[self.cut.layers]._replace(relu=False)
                self._convs.append(_Conv(layer, layer.conv.weight, None, dtype))
            if self._convs:  # the first convolution also divides by the standard deviation
                divided = self._convs[0].weight.cpu().double().div(std)
                self._convs[0].weight = divided.to(dtype).to(self.device)
        self._num_large = 0
        self._prepare(size)

    def _prepare(self, size: int) -> None:
        """Use oneDNN's fused convolutions if they are there and give the plain ones' results."""
        for conv in self._convs:
            conv.weight = conv.weight.contiguous(memory_format=torch.channels_last)
        if self.device.type != "cpu" or self.dtype not in TOLERANCE or not self._convs:
            return
        trial = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255
        expected = self(trial)
        weights = [conv.weight for conv in self._convs]
        try:
            for conv in self._convs:
                conv.plain = False
            error = (self(trial).float() - expected.float()).abs().max() / expected.float().abs().max()
            if not error <= TOLERANCE[self.dtype]:
                raise RuntimeError(f"relative error {error:.2g}")
            self._num_large = self._count_large(size)
        except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
            reason = str(error).split("\n")[0]
            log.info("Convolutions are not fused on this machine, which is slower: %s.", reason)
            for conv, weight in zip(self._convs, weights, strict=True):
                conv.weight, conv.plain = weight, True

    def _count_large(self, size: int) -> int:
        """Count the convolutions, up to the end of a block, whose activations take over LARGE bytes a photo.

        They run on a few photos at a time.
        """
        count, side = 0, size
        for index, conv in enumerate(self._convs):
            side = -(-side // conv.stride[0])
            if conv.channels * side * side * self.dtype.itemsize > LARGE:
                count = index + 1
        while count < len(self._convs) and not self._convs[count].opens:
            count += 1
        return count

    @property
    def fused(self) -> bool:
        """Return whether oneDNN's fused convolutions are in use."""
        return bool(self._convs) and not self._convs[0].plain

    @torch.no_grad()
    def __call__(self, photos: Tensor) -> Tensor:
        """Compute what the trained part takes.

        Args:
            photos: (N, 3, size, size), RGB: uint8, or float on the same scale of 0 to 255.

        Returns:
            Activations (N, C, h, w) in `dtype`, or, where the whole backbone is frozen, pooled features
            (N, 1280) in float32 or float64.
        """
        maps = (photos - self._mean).to(self.dtype, memory_format=torch.channels_last)
        if not self._convs:
            return (maps / self._std).to(self.dtype)
        large, small = self._convs[: self._num_large], self._convs[self._num_large :]
        if large:
            maps = torch.cat([_run(large, part) for part in maps.split(self.chunk // 4)])
        maps = _run(small, maps)
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

    def __init__(self, layer: ConvNorm, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight, self.bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        self.relu, self.opens, self.adds, self.plain = layer.relu, layer.opens, layer.adds, True
        self.stride, self.padding, self.groups = geometry(layer.conv)
        self.channels = layer.conv.out_channels
        self._packed = False

    def __call__(self, maps: Tensor, block: Tensor | None) -> Tensor:
        """Convolve, and add `block` to the result, in place where that is faster."""
        if self.plain:
            maps = F.conv2d(maps, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
            maps = maps.clamp_(0, 6) if self.relu else maps
            return maps if block is None else maps + block
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
    """Compute a convolution and, if `relu`, a ReLU6 in one pass of oneDNN.

    The operator is the one that torch.compile's frozen graphs use on a CPU.
    """
    return torch.ops.mkldnn._convolution_pointwise.default(  # type: ignore[no-any-return]
        maps, weight, bias, padding, stride, [1, 1], groups,
        "hardtanh" if relu else "none", [0.0, 6.0] if relu else [], "",
    )  # fmt: skip


def pool(maps: Tensor) -> Tensor:
    """Average activations over height and width: (N, C, h, w) to (N, C), in float32 or float64."""
    return maps.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))

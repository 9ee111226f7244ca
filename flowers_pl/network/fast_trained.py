"""The trained end of a network, computed fast: on its own parameters, with gradients for all of them.

Batch norm is folded into the convolutions anew at each step.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.network.fast_frozen import FrozenPart, fused_conv, pool
from flowers_pl.network.fast_layers import ConvNorm, conv_norms, geometry
from flowers_pl.network.mobilenet import FlowerNet


class TrainedPart:
    """What follows the frozen part: on the network's own parameters, so that they get the gradients.

    Args:
        network: holds the parameters.
        frozen: what comes before.
    """

    def __init__(self, network: FlowerNet, frozen: FrozenPart) -> None:
        self.network, self.half, self.dtype = network, frozen.cut.half, frozen.dtype
        self.layers = conv_norms(network.backbone)[frozen.cut.layers :]
        self.fused = frozen.fused

    def __call__(self, maps: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits, float (N, classes), of what the frozen part gave.

        Args:
            maps: from `FrozenPart`.
            keys: int64 (N,), one a photo, for the dropout.
        """
        network = self.network
        with torch.autocast(maps.device.type, enabled=False):
            features = _Pool.apply(self._maps(maps)) if self.layers else maps
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
        stride, padding, groups = geometry(one.conv)
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
            own = torch.empty_like(weight)  # laid out like the weight, as DDP's buckets are
            d_weight = torch.mul(cast(Tensor, d_weight), scale[:, None, None, None], out=own)
        return d_maps, d_weight if to_weight else None, d_gain, d_shift if to_shift else None, None, None


class _Pool(torch.autograd.Function):
    """`frozen.pool`; autograd would spread its gradient over the places in float32, and then round it."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = maps.shape, maps.dtype
        return pool(maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        each = gradients[0] / (ctx.shape[2] * ctx.shape[3])
        return each.to(ctx.dtype)[:, :, None, None].expand(ctx.shape)


def _conv_backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, conv: nn.Conv2d, to_maps: bool, to_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution; of a pointwise one by products of matrices, which is a tenth faster."""
    stride, padding, groups = geometry(conv)
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

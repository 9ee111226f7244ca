"""Compute the trained part of a network fast, on the network's own parameters and with all their gradients.

Batch norm is folded into the convolutions at each step.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.network.fast_frozen import FrozenPart, fused_conv, pool
from flowers_pl.network.fast_layers import ConvNorm, conv_norms, geometry
from flowers_pl.network.mobilenet import FlowerNet

# The gradient of a depthwise convolution of stride 1 is a convolution with the flipped kernel. From this many
# pixels a map on oneDNN's forward operator is faster than its backward one, by up to 2.5 times.
LARGE_MAPS = 100


class TrainedPart:
    """The part of a network that follows its frozen part, on the network's own parameters.

    Args:
        network: holds the parameters, which get the gradients.
        frozen: the part before this one.

    >>> import torch
    >>> network = FlowerNet(5)
    >>> network.train_top_layers(30)
    >>> frozen = FrozenPart(network, torch.float32, size=64)
    >>> logits = TrainedPart(network, frozen)(frozen(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))
    >>> logits.shape
    torch.Size([2, 5])
    >>> logits.sum().backward()
    >>> sum(weight.grad is not None for weight in network.parameters())
    34
    """

    def __init__(self, network: FlowerNet, frozen: FrozenPart) -> None:
        self.network, self.half, self.dtype = network, frozen.cut.half, frozen.dtype
        self.layers = conv_norms(network.backbone)[frozen.cut.layers :]
        self.fused = frozen.fused

    def __call__(self, maps: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compute logits, float (N, classes).

        Args:
            maps: what `FrozenPart` returned.
            keys: int64 (N,), one for each photo, for the dropout.
        """
        network = self.network
        with torch.autocast(maps.device.type, enabled=False):
            features = _Pool.apply(self._maps(maps)) if self.layers else maps
            return network.head(network.dropout(features, keys))  # type: ignore[no-any-return]

    def _maps(self, maps: Tensor) -> Tensor:
        block = maps
        for index, layer in enumerate(self.layers):
            if layer.opens:
                block = maps
            if index == 0 and self.half:
                norm = layer.norm
                maps = F.batch_norm(
                    maps.to(norm.weight.dtype), norm.running_mean, norm.running_var, norm.weight, norm.bias,
                    False, 0.0, norm.eps,
                ).to(self.dtype)  # fmt: skip
                maps = F.relu6(maps) if layer.relu else maps
            else:
                weights = layer.conv.weight, layer.norm.weight, layer.norm.bias
                maps = _ConvNormRelu.apply(maps, *weights, layer, self.fused)
            if layer.adds:
                maps = maps + block
        return maps


class _ConvNormRelu(torch.autograd.Function):
    """Compute convolution, batch norm in evaluation mode and ReLU6 as one convolution with folded weights.

    y = relu6(conv(x, w s) + b - m s), with s = g / sqrt(v + eps). With the gradients of folded weight and
    bias, dW and dB: dw = dW s; db = dB; dg = (sum of dW w over a channel - dB m) / sqrt(v + eps).
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, gain: Tensor, shift: Tensor, layer: ConvNorm, fused: bool
    ) -> Tensor:
        rate = layer.rate
        scale = gain * rate
        folded = torch.empty_like(weight, dtype=maps.dtype, memory_format=torch.channels_last)
        torch.mul(weight, scale[:, None, None, None], out=folded)
        bias = (shift - layer.mean * scale).to(maps.dtype)
        stride, padding, groups = geometry(layer.conv)
        if fused:
            output = fused_conv(maps, folded, bias, stride, padding, groups, layer.relu)
        else:
            output = F.conv2d(maps, folded, bias, stride, padding, 1, groups)
            output = output.clamp_(0, 6) if layer.relu else output
        ctx.layer = layer
        ctx.save_for_backward(maps, folded, output if layer.relu else maps, weight, scale, rate)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, folded, output, weight, scale, rate = ctx.saved_tensors
        layer, (to_maps, to_weight, to_gain, to_shift) = ctx.layer, ctx.needs_input_grad[:4]
        if not len(maps):  # a rank without a photo in a short batch: torch's own backward fails (2.14)
            return *(torch.zeros_like(value) for value in (maps, weight, scale, scale)), None, None
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if layer.relu:  # in place: only the next convolution of the block has made this gradient
            torch.ops.aten.hardtanh_backward.grad_input(gradient, output, 0, 6, grad_input=gradient)
        d_maps, d_folded = _conv_backward(gradient, maps, folded, layer.conv, to_maps, to_weight or to_gain)
        d_weight = d_gain = d_shift = None
        if to_gain or to_shift:
            d_shift = gradient.sum((0, 2, 3)).to(scale.dtype)
        if to_weight or to_gain:
            d_weight = cast(Tensor, d_folded).to(weight.dtype)
        if to_gain:
            dots = torch.linalg.vecdot(cast(Tensor, d_weight).flatten(1), weight.flatten(1))
            d_gain = (dots - cast(Tensor, d_shift) * layer.mean) * rate
        if to_weight:
            like_weight = torch.empty_like(weight)  # the weight's memory layout, which DDP's buckets have
            d_weight = torch.mul(cast(Tensor, d_weight), scale[:, None, None, None], out=like_weight)
        return d_maps, d_weight if to_weight else None, d_gain, d_shift if to_shift else None, None, None


class _Pool(torch.autograd.Function):
    """Pool as `fast_frozen.pool` does, with a gradient in the activations' dtype.

    Autograd would expand the gradient in float32 and round it afterwards.
    """

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
    """Compute a convolution's gradients; those of a pointwise one as matrix products, a tenth faster."""
    stride, padding, groups = geometry(conv)
    if conv.kernel_size == (1, 1) and stride == [1, 1]:
        return _pointwise_backward(gradient, maps, weight, to_maps, to_weight)
    if groups > 1 and to_maps and gradient.device.type == "cpu":
        if stride == [1, 1] and gradient.shape[2] * gradient.shape[3] >= LARGE_MAPS:
            flipped = weight.flip(2, 3).contiguous(memory_format=torch.channels_last)
            d_maps = F.conv2d(gradient, flipped, None, 1, padding, 1, groups)
            return d_maps, _library_backward(gradient, maps, weight, conv, False, to_weight)[1]
        if stride != [1, 1] and gradient.dtype == torch.bfloat16:  # 40 times as fast as in bfloat16
            wide = _library_backward(gradient.float(), maps.float(), weight.float(), conv, True, to_weight)
            return cast(Tensor, wide[0]).to(gradient.dtype), None if wide[1] is None else wide[1].to(
                gradient.dtype
            )
    return _library_backward(gradient, maps, weight, conv, to_maps, to_weight)


def _library_backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, conv: nn.Conv2d, to_maps: bool, to_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, groups = geometry(conv)
    d_maps, d_weight, _ = torch.ops.aten.convolution_backward(
        gradient, maps, weight, None, stride, padding, [1, 1], False, [0, 0], groups,
        [to_maps, to_weight, False],
    )  # fmt: skip
    return d_maps, d_weight


def _pointwise_backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, to_maps: bool, to_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)
    d_maps = d_weight = None
    if to_maps:
        n, _, height, width = gradient.shape
        d_maps = (rows @ weight.flatten(1)).view(n, height, width, -1).permute(0, 3, 1, 2)
    if to_weight:
        d_weight = (rows.t() @ maps.permute(0, 2, 3, 1).flatten(0, 2))[:, :, None, None]
    return d_maps, d_weight

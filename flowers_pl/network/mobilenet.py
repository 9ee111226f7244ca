"""Define MobileNetV2 with a new head in plain torch: backbone, pooling, dropout, one linear layer.

This is the module that is exported. The layers are torchvision's; which of them are "the top 30" follows
Keras, because the recipe is a Keras notebook's (`for layer in base.layers[:-30]: layer.trainable = False`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual

FEATURES = 1280
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TopLayers = int | Literal["all"]


class PhotoDropout(nn.Module):
    """Dropout whose mask is a function of each photo's key, not of a global generator.

    With keys drawn from (seed, epoch, photo) a photo gets the same mask in any batch, process and device, and
    after a resume. Without keys this is `nn.Dropout`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {p}")
        self.p = p

    def forward(self, features: Tensor, keys: Tensor | None = None) -> Tensor:
        """Drop features and scale the rest by 1 / (1 - p), in training mode only.

        Args:
            features: float (N, C).
            keys: int64 (N,), one for each photo.
        """
        if not self.training or self.p == 0:
            return features
        if keys is None:
            return nn.functional.dropout(features, self.p)
        kept = uniform_bits(keys, features.shape[1]) >= round(self.p * 2**BITS) - 2 ** (BITS - 1)
        return features * (kept.to(features.dtype) / (1 - self.p))


BITS = 16  # of randomness for each feature


def uniform_bits(keys: Tensor, count: int) -> Tensor:
    """Hash keys to (N, count) integers, int16, uniform over their whole range.

    Rounds of xor-shift and multiply with the constants of "splitmix64" (Steele, Lea & Flood 2014), on int64
    with wrap-around, which give the same on every device; each hash yields four integers. Right shifts are
    masked because torch's are arithmetic.
    """
    hashes = -(-count * BITS // 64)
    state = keys[:, None] + torch.arange(1, hashes + 1, device=keys.device) * -7046029254386353131
    state = (state ^ ((state >> 30) & (2**34 - 1))) * -4658895280553007687
    state = (state ^ ((state >> 27) & (2**37 - 1))) * -7723592293110705685
    state = state ^ ((state >> 31) & (2**33 - 1))
    return state.view(torch.int16)[:, :count]


class FlowerNet(nn.Module):
    """A network that takes photos and returns logits.

    Args:
        classes: number of classes, two at least.
        dropout: share of the pooled features that are dropped in training.
        mean: subtracted from each colour channel, on the scale of 0 to 1.
        std: each colour channel is divided by it after that.

    >>> import torch
    >>> network = FlowerNet(5).eval()
    >>> network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([2, 5])
    >>> network.train_top_layers(30)
    >>> sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    1532805
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        dropout: float = 0.3,
        mean: Iterable[float] = IMAGENET_MEAN,
        std: Iterable[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)
        self.backbone = mobilenet_v2().features.to(memory_format=torch.channels_last)
        self.dropout = PhotoDropout(dropout)
        self.head = nn.Linear(FEATURES, classes)
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)
        self.train(self.training)

    def forward(self, photos: Tensor, keys: Tensor | None = None) -> Tensor:
        """Classify photos.

        Args:
            photos: (N, 3, H, W), RGB: uint8, or float on the same scale of 0 to 255.
            keys: int64 (N,), one for each photo, for the dropout (see `PhotoDropout`).

        Returns:
            Logits, float (N, classes).
        """
        return self.head(self.dropout(self.features(photos), keys))

    def features(self, photos: Tensor) -> Tensor:
        """Compute pooled backbone features, float (N, 1280), of photos as in `forward`."""
        maps = self.backbone((photos.to(self.mean.dtype) / 255 - self.mean) / self.std)
        return maps.mean((2, 3))  # adaptive_avg_pool2d's backward is not deterministic on CUDA

    def train(self, mode: bool = True) -> FlowerNet:
        """Set the mode as in `nn.Module`, but leave the backbone in evaluation mode.

        Keras runs it with `training=False` in both stages: batch norm uses its stored statistics and never
        updates them.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def train_top_layers(self, layers: TopLayers) -> None:
        """Make the head and the top layers of the backbone trainable and freeze the rest.

        Args:
            layers: number of layers from the top, as Keras counts them (see `keras_layers`), or "all".

        Raises:
            ValueError: `layers` is negative or more than the backbone has.
        """
        order = keras_layers(self.backbone)
        count = len(order) if layers == "all" else layers
        if not isinstance(count, int) or not 0 <= count <= len(order):
            raise ValueError(f"top layers must be 0 to {len(order)} or 'all', not {layers!r}")
        self.backbone.requires_grad_(False)
        for layer in order[len(order) - count :]:
            if layer is not None:
                layer.requires_grad_(True)


def keras_layers(backbone: nn.Sequential) -> list[nn.Module | None]:
    """List the layers of Keras's MobileNetV2 without its top, in order, as torchvision's modules.

    Keras counts 154 of them (keras.applications.MobileNetV2, include_top=False): besides convolutions, batch
    norms and ReLUs the input, the padding before each strided convolution of a block, and the additions,
    which have no module here and are None.
    """
    layers: list[nn.Module | None] = [None]
    for block in backbone:
        if not isinstance(block, InvertedResidual):
            layers += block.children()
            continue
        for part in block.conv:
            steps = list(part.children()) or [part]
            if _strided_depthwise(steps[0]):
                layers.append(None)
            layers += steps
        if block.use_res_connect:
            layers.append(None)
    return layers


def _strided_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride[0] > 1


def start_from_nothing(network: FlowerNet, photos: Tensor, batch: int = 64) -> None:
    """Initialise an untrained backbone so that it can be trained with batch norm in evaluation mode.

    With torchvision's initialisation features would be of the order of 1e-10 then. Therefore the last batch
    norm of each residual branch starts at zero (Goyal et al. 2017, section 5.1), and all batch-norm
    statistics are measured once, on `photos`, and kept.

    Args:
        network: changed in place.
        photos: (N, 3, H, W) as in `FlowerNet.forward`; a few hundred training photos.
        batch: batch size; the statistics are averages over the batches.
    """
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for block in network.backbone:
        if isinstance(block, InvertedResidual) and block.use_res_connect:
            nn.init.zeros_(block.conv[-1].weight)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for part in photos.split(batch):
            network.features(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()

"""Write an ONNX file that gives heat maps and novelty scores beside the probabilities."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flowers_pl.data.decoding import resize_photo
from flowers_pl.export.write import MAPS, OUTPUT, UNLIKE, Deployable, metadata, write_onnx
from flowers_pl.network.answers import final_logits
from flowers_pl.training.classifier import FlowerClassifier


class ExplainedDeployable(Deployable):
    """Classify decoded photos as `Deployable` does, and explain the answers.

    Args:
        model: is copied to the CPU, in evaluation mode.
    """

    def __init__(self, model: FlowerClassifier) -> None:
        super().__init__(model)
        self.novelty = model.novelty
        if self.novelty is not None:
            self.register_buffer("mean", self.novelty.mean.cpu().float())
            self.register_buffer("axes", self.novelty.axes.cpu().float())

    @property
    def outputs(self) -> list[str]:
        """Names of what `forward` returns."""
        return [OUTPUT, MAPS] if self.novelty is None else [OUTPUT, MAPS, UNLIKE]

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return probabilities, maps and novelty scores of photos, uint8 (N, 3, H, W), RGB, of any size.

        Returns:
            Probabilities, float32 (N, classes); the evidence for each class at each place of the last block,
            relu(sum_k W[c, k] A_k), float32 (N, classes, h, w), not scaled (see
            `explain.activation_maps`); and `Novelty`'s scores, float32 (N,), where the model has them. Maps
            and scores are of the photo as it is, with a `flip_test` too.
        """
        network, resized = self.network, resize_photo(photos, self.image_size)
        pixels = (resized.to(torch.float32) / 255 - network.mean) / network.std
        both = (
            torch.cat([pixels, pixels.flip(3)]) if self.flip_test else pixels
        )  # one pass: the graph stays small
        features = network.backbone(both)
        pooled = features.mean((2, 3))
        logits = network.head(pooled)
        if self.flip_test:
            features, pooled, logits = (each.unflatten(0, (2, -1)) for each in (features, pooled, logits))
            features, pooled, logits = features[0], pooled[0], logits.transpose(0, 1)
        shares = final_logits(logits, self.temperature).softmax(1)
        maps = torch.einsum("nkhw,ck->nchw", features, network.head.weight).relu()
        if self.novelty is None:
            return shares, maps
        return shares, maps, self.novelty(pooled)


def export_explained(model: FlowerClassifier, file: Path) -> None:
    """Write ONNX in float32 as `export_onnx` does, with two more outputs.

    Its outputs are `probabilities`, `maps` (N, classes, h, w) and, where the model has novelty scores,
    `unlike` (N), above 1 for a picture that is probably of none of the classes.

    Raises:
        FlowersError: onnx or onnxscript is missing, or the file cannot be written.
    """
    module = ExplainedDeployable(model)
    write_onnx(module, module.outputs, metadata(model), file)

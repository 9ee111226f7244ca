"""Write a .pte file, for ExecuTorch: PyTorch's runtime on phones."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import printable
from flowers_pl.export.write import Deployable, metadata, quiet, require, written_whole
from flowers_pl.training.classifier import FlowerClassifier


def export_executorch(model: FlowerClassifier, file: Path) -> None:
    """Write a `.pte` in float32, for ExecuTorch's XNNPACK backend.

    Its method `forward` takes one photo that already has the model's size, uint8 (1, 3, S, S), RGB, and
    returns probabilities, float32 (1, classes). A resize of photos of any size would need memory for the
    largest one. What other files have as metadata are methods without arguments: `classes` (a JSON list),
    `image_size` (pixels) and `flowers_pl` (version).

    Raises:
        FlowersError: executorch is missing or does not work with this torch, or the file cannot be written.
    """
    exir = import_executorch("exir")
    xnnpack = import_executorch("backends.xnnpack.partition.xnnpack_partitioner")
    # XNNPACK's partitioner refuses weights in channels-last.
    module = Deployable(model, resizes=False).to(memory_format=torch.contiguous_format)
    photo = torch.zeros(1, 3, model.image_size, model.image_size, dtype=torch.uint8)
    with quiet():
        program = exir.to_edge_transform_and_lower(
            torch.export.export(module, (photo,)),
            partitioner=[xnnpack.XnnpackPartitioner()],
            constant_methods=metadata(model) | {"image_size": model.image_size},
        ).to_executorch()
    with written_whole(file) as unfinished, unfinished.open("wb") as stream:
        program.write_to_file(stream)


def import_executorch(name: str) -> Any:
    """Import a module of executorch.

    Raises:
        FlowersError: executorch is missing, or was made for another torch.
    """
    require("executorch", extra="mobile")
    try:
        with quiet():
            return import_module(f"executorch.{name}")
    except (ImportError, AttributeError, OSError) as error:
        raise FlowersError(
            f"executorch {version('executorch')} does not work with torch {torch.__version__}"
            f" ({printable(str(error))}); install the release that was made for it."
        ) from error

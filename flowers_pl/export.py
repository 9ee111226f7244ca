"""The trained model as one file that needs nothing of this project: ONNX, torch.export's .pt2, and ONNX in 8 bits.

Photos of any size go in and probabilities come out; resize and normalisation are inside.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import flowers_pl
from flowers_pl.classifier import FlowerClassifier
from flowers_pl.decode import resize_photo
from flowers_pl.errors import FlowersError

if TYPE_CHECKING:
    import onnx

OPSET = 20  # Resize knows antialias from 18 on
METADATA = "flowers_pl.json"  # in a .pt2; ONNX has a place of its own for such things
INPUT, OUTPUT = "photos", "probabilities"


class Deployable(nn.Module):
    """What `FlowerClassifier` does with a photo once it is decoded, in one module.

    Args:
        model: is copied, to the CPU and in evaluation mode.
    """

    def __init__(self, model: FlowerClassifier) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.network).cpu().eval().requires_grad_(False)
        self.image_size = model.image_size

    def forward(self, photos: Tensor) -> Tensor:
        """Classify photos as they were decoded.

        Args:
            photos: uint8 (N, 3, H, W), RGB, of any height and width.

        Returns:
            Probabilities, float32 (N, classes).
        """
        logits: Tensor = self.network(resize_photo(photos, self.image_size))
        return logits.softmax(1)


def metadata(model: FlowerClassifier) -> dict[str, str]:
    """What an exported file says about itself: `classes` (a JSON list, in the order of the outputs), `image_size`, `flowers_pl`."""
    return {
        "classes": json.dumps(model.classes),
        "image_size": str(model.image_size),
        "flowers_pl": flowers_pl.__version__,
    }


def export_torch(model: FlowerClassifier, file: Path) -> None:
    """Write a `.pt2` (torch.export); batch, height and width are free.

    Raises:
        FlowersError: it cannot be written; the old file is as it was.
    """
    with quiet():
        program = _program(model)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    with quiet(), _whole(file) as unfinished:
        torch.export.save(program, unfinished, extra_files={METADATA: json.dumps(metadata(model))})


def export_onnx(model: FlowerClassifier, file: Path) -> None:
    """Write ONNX in float32; batch, height and width are free.

    Raises:
        FlowersError: onnx or onnxscript is not installed, or the file cannot be written; the old file is as it was.
    """
    need("onnx", "onnxscript")
    import onnx

    with quiet():
        program = torch.onnx.export(
            _program(model),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, proto.graph):
        part.ClearField("metadata_props")  # stack traces: paths of this machine
    onnx.helper.set_model_props(proto, metadata(model))
    with _whole(file) as unfinished:
        onnx.save(proto, unfinished)


def _program(model: FlowerClassifier) -> torch.export.ExportedProgram:
    """The traced `Deployable`; the sizes of its example are no sizes that a branch could depend on."""
    example = torch.zeros(2, 3, 70, 91, dtype=torch.uint8)
    free = {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}
    return torch.export.export(Deployable(model), (example,), dynamic_shapes=(free,))


def need(*packages: str) -> None:
    """Raise where a package of the extra `export` is missing.

    Raises:
        FlowersError: says how to install it.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise FlowersError(f"{' and '.join(missing)} is not installed; run: pip install 'flowers_pl[export]'.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' dozens of warnings and log lines, which no user can act on, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A place beside `file` to write to; what was written there takes the place of `file` at the end.

    Raises:
        FlowersError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
            unfinished = Path(folder) / file.name
            yield unfinished
            with unfinished.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(unfinished, file)
    except (OSError, RuntimeError) as error:
        raise FlowersError(f"{str(file)!r} cannot be written ({error}); make room or choose another place.") from error

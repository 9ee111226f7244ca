"""Write the trained model as one file that does not need this project: ONNX or torch's .pt2.

Photos of any size go in and probabilities come out; resizing and normalisation are part of the model.
`export.mobile` writes a third kind of file, for phones.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

import flowers_pl
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replacing
from flowers_pl.data.decoding import resize_photo
from flowers_pl.network.answers import final_logits
from flowers_pl.training.classifier import FlowerClassifier

OPSET = 20  # Resize knows antialias from 18 on
METADATA = "flowers_pl.json"  # a member of a .pt2; ONNX files have a field for metadata
INPUT, OUTPUT = "photos", "probabilities"
MAPS, UNLIKE = "maps", "unlike"  # what `export.explained` adds
# torch.export takes a size of 1 as fixed, and equal sizes as always equal.
EXAMPLE = torch.zeros(2, 3, 70, 91, dtype=torch.uint8)
FREE = {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}


class Deployable(nn.Module):
    """Resize, normalise and classify decoded photos in one module, as `FlowerClassifier.probabilities` does.

    Args:
        model: is copied to the CPU, in evaluation mode.
        resizes: False where photos already have the model's size.
    """

    def __init__(self, model: FlowerClassifier, resizes: bool = True) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.network).cpu().float().eval().requires_grad_(False)
        self.image_size, self.resizes = model.image_size, resizes
        self.flip_test, self.temperature = model.flip_test, model.temperature

    def forward(self, photos: Tensor) -> Tensor:
        """Return probabilities, float32 (N, classes), of photos, uint8 (N, 3, H, W), RGB, of any size."""
        resized = resize_photo(photos, self.image_size) if self.resizes else photos
        if self.flip_test:
            both = self.network(torch.cat([resized, resized.flip(3)]))  # in one pass: the graph stays small
            logits = both.unflatten(0, (2, -1)).transpose(0, 1)
        else:
            logits = self.network(resized)
        return final_logits(logits, self.temperature).softmax(1)


def metadata(model: FlowerClassifier) -> dict[str, str]:
    """Return `classes` (a JSON list, in output order), `image_size` (pixels) and `flowers_pl` (version)."""
    return {
        "classes": json.dumps(model.classes),
        "image_size": str(model.image_size),
        "flowers_pl": flowers_pl.__version__,
    }


def export_torch(model: FlowerClassifier, file: Path) -> None:
    """Write a `.pt2` (torch.export) that takes any batch size, height and width.

    Raises:
        FlowersError: the file cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> from flowers_pl import FlowerClassifier, export_torch
    >>> model = FlowerClassifier(weights=None)
    >>> model.build(["daisy", "rose"], image_size=32)
    >>> with TemporaryDirectory() as folder:
    ...     export_torch(model, Path(folder, "final.pt2"))
    ...     program = torch.export.load(Path(folder, "final.pt2"))
    >>> program.module()(torch.zeros(4, 3, 90, 120, dtype=torch.uint8)).shape
    torch.Size([4, 2])
    """
    with quiet():
        program = torch.export.export(Deployable(model), (EXAMPLE,), dynamic_shapes=(FREE,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    # By a stream, for the path may not be UTF-8.
    with quiet(), written_whole(file) as unfinished, unfinished.open("wb") as stream:
        torch.export.save(program, stream, extra_files={METADATA: json.dumps(metadata(model))})


def export_onnx(model: FlowerClassifier, file: Path) -> None:
    """Write ONNX in float32 that takes any batch size, height and width.

    Raises:
        FlowersError: onnx or onnxscript is missing, or the file cannot be written.

    >>> import onnxruntime
    >>> from tempfile import TemporaryDirectory
    >>> from flowers_pl import FlowerClassifier, export_onnx
    >>> model = FlowerClassifier(weights=None)
    >>> model.build(["daisy", "rose"], image_size=32)
    >>> with TemporaryDirectory() as folder:
    ...     export_onnx(model, Path(folder, "final.onnx"))
    ...     session = onnxruntime.InferenceSession(Path(folder, "final.onnx"))
    >>> session.run(None, {"photos": torch.zeros(4, 3, 90, 120, dtype=torch.uint8).numpy()})[0].shape
    (4, 2)
    """
    write_onnx(Deployable(model), [OUTPUT], metadata(model), file)


def write_onnx(module: nn.Module, outputs: list[str], facts: dict[str, str], file: Path) -> None:
    """Write a module that takes photos as `Deployable` does.

    Args:
        module: in evaluation mode, on the CPU.
        outputs: names of what it returns.
        facts: the file's metadata.
        file: where it goes.

    Raises:
        FlowersError: as `export_onnx`.
    """
    require("onnx", "onnxscript")
    import onnx

    with quiet():
        program = torch.onnx.export(
            module,
            (EXAMPLE,),
            dynamic_shapes=(FREE,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=outputs,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, proto.graph):
        part.ClearField("metadata_props")  # stack traces: paths of this machine
    onnx.helper.set_model_props(proto, facts)
    with written_whole(file) as unfinished:
        onnx.save(proto, unfinished)


def require(*packages: str, extra: str = "export") -> None:
    """Raise FlowersError, which says how to install it, if a package of an extra is missing."""
    if missing := [name for name in packages if find_spec(name) is None]:
        names = " and ".join(missing)
        raise FlowersError(f"{names} must be installed for this; run: pip install 'flowers_pl[{extra}]'.")


@contextmanager
def quiet() -> Iterator[None]:
    """Mute the exporters' dozens of warnings and log lines, on which no user can act."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Give a path to write to, and replace `file` by what was written there at the end.

    Raises:
        FlowersError: it cannot be written; the old file is unchanged.
    """
    try:
        with replacing(file) as unfinished:
            yield unfinished
    except (OSError, RuntimeError) as error:
        raise unwritable(file, error) from error


def unwritable(file: Path, error: Exception) -> FlowersError:
    """Return the error for a file that cannot be written."""
    return FlowersError(
        f"{str(file)!r} cannot be written ({error}); free some space or choose another folder."
    )

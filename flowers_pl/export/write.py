"""The trained model as one file that needs nothing of this project: ONNX, in 8 bits too, or torch's .pt2.

Photos of any size go in and probabilities come out; resize and normalisation are inside.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.export import Dim

import flowers_pl
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replacing
from flowers_pl.data.decoding import resize_photo
from flowers_pl.training.classifier import FlowerClassifier

OPSET = 20  # Resize knows antialias from 18 on
METADATA = "flowers_pl.json"  # in a .pt2; ONNX has a place of its own for such things
INPUT, OUTPUT = "photos", "probabilities"
# Export takes a size of 1 as fixed, and equal sizes as always equal.
EXAMPLE = torch.zeros(2, 3, 70, 91, dtype=torch.uint8)
FREE = {0: Dim("batch", min=1), 2: Dim("height", min=1), 3: Dim("width", min=1)}


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
    """What an exported file says about itself.

    Returns:
        `classes` (a JSON list, in the outputs' order), `image_size` (pixels), `flowers_pl` (its version).
    """
    return {
        "classes": json.dumps(model.classes),
        "image_size": str(model.image_size),
        "flowers_pl": flowers_pl.__version__,
    }


def export_torch(model: FlowerClassifier, file: Path) -> None:
    """Write a `.pt2` (torch.export); batch, height and width are free.

    Raises:
        FlowersError: it cannot be written.
    """
    with quiet():
        program = torch.export.export(Deployable(model), (EXAMPLE,), dynamic_shapes=(FREE,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    with quiet(), _whole(file) as unfinished:
        torch.export.save(program, unfinished, extra_files={METADATA: json.dumps(metadata(model))})


def export_onnx(model: FlowerClassifier, file: Path) -> None:
    """Write ONNX in float32; batch, height and width are free.

    Raises:
        FlowersError: onnx or onnxscript is missing, or the file cannot be written.
    """
    need("onnx", "onnxscript")
    import onnx

    with quiet():
        program = torch.onnx.export(
            Deployable(model),
            (EXAMPLE,),
            dynamic_shapes=(FREE,),
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


def quantize_int8(onnx_file: Path, out_file: Path, photos: Iterable[Tensor]) -> None:
    """Write an ONNX file with weights and activations in 8 bits, for onnxruntime.

    Static quantisation (Jacob et al. 2018) in QDQ form, with a scale for each channel of the weights. Ranges
    of the activations are the mean of the photos' own: that kept probabilities as close to the float model's
    as the best percentile did (689 real photos), in constant memory. Resize, normalisation and head stay in
    float32: they decide what the network sees, and a softmax in 8 bits does not add up to 1.

    Args:
        onnx_file: as `export_onnx` wrote it.
        out_file: takes the place of what is there.
        photos: uint8 (3, H, W), RGB, of any sizes: some hundred training photos.

    Raises:
        FlowersError: onnx or onnxruntime is missing, or the file cannot be written.
    """
    need("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with quiet(), _whole(out_file) as unfinished, TemporaryDirectory() as scratch:
        folded = Path(scratch, "folded.onnx")
        quant_pre_process(
            onnx_file, folded, skip_symbolic_shape=True
        )  # folds batch norms, where any are left
        resize = takewhile(lambda node: node.op_type != "Conv", onnx.load(folded).graph.node)
        feeds = ({INPUT: photo[None].numpy()} for photo in photos)
        quantize_static(
            folded,
            unfinished,
            SimpleNamespace(get_next=lambda: next(feeds, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Clip", "Add"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in resize],
            extra_options={"CalibMovingAverage": True},
        )


def need(*packages: str) -> None:
    """Raise where a package of the extra `export` is missing.

    Raises:
        FlowersError: says how to install it.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        names = " and ".join(missing)
        raise FlowersError(f"{names} must be installed for this; run: pip install 'flowers_pl[export]'.")


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
        FlowersError: it cannot be written; the old file is as it was.
    """
    try:
        with replacing(file) as unfinished:
            yield unfinished
    except (OSError, RuntimeError) as error:
        raise FlowersError(
            f"{str(file)!r} cannot be written ({error}); make room or choose another place."
        ) from error

"""Write an exported model in 8 bits, so that it gives the same answers on every processor."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.export.write import INPUT, quiet, require, written_whole

NO_PHOTOS = (
    "--quantize int8 needs training photos to calibrate on, and none can be read; put them back, or name"
    " their folder with --root."
)


def quantize_int8(onnx_file: Path, out_file: Path, photos: Iterable[Tensor]) -> None:
    """Write an ONNX file with weights and activations in 8 bits, for onnxruntime.

    This is static quantisation (Jacob et al. 2018) in QDQ form, with one scale per channel of the weights.
    The range of an activation is the mean of its ranges over the photos, which needs constant memory and kept
    probabilities as close to the float model's as the best percentile did (689 real photos). Resizing,
    normalisation and head stay in float32: they decide what the network sees, and a softmax in 8 bits does
    not add up to 1.

    Weights use 7 of the 8 bits. AVX2 without VNNI adds products of an activation (0 to 255) and a weight in
    pairs, in 16 bits that saturate (onnxruntime's documentation, "Quantize ONNX models": U8S8, reduce_range).
    On 689 real photos, 0.887 of them right in float32: 0.891 with 8 bits but 0.845 on an emulated Haswell,
    0.884 with 7 bits, the same probabilities on both, in the same time and size. Unsigned weights cannot
    saturate either (0.888) but take twice as long with VNNI.

    Args:
        onnx_file: a file that `export_onnx` wrote.
        out_file: the file to write; an existing one is replaced.
        photos: a few hundred training photos, uint8 (3, H, W), RGB, of any sizes.

    Raises:
        FlowersError: onnx or onnxruntime is missing, there are no photos, or the file cannot be written.
    """
    require("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    photos = iter(photos)
    if (first := next(photos, None)) is None:
        raise FlowersError(NO_PHOTOS)
    with quiet(), written_whole(out_file) as unfinished, TemporaryDirectory() as scratch:
        original, folded = Path(scratch, "original.onnx"), Path(scratch, "folded.onnx")
        shutil.copyfile(onnx_file, original)  # onnxruntime refuses paths that are not UTF-8
        quant_pre_process(original, folded, skip_symbolic_shape=True)  # folds remaining batch norms
        nodes = list(onnx.load(folded).graph.node)
        feeds = ({INPUT: photo[None].numpy()} for photo in chain([first], photos))
        quantize_static(
            folded,
            unfinished,
            SimpleNamespace(get_next=lambda: next(feeds, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Clip", "Add"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in _outside_backbone(nodes)],
            extra_options={"CalibMovingAverage": True},
        )
        check_pair_sums(unfinished)


def _outside_backbone(nodes: list[Any]) -> list[Any]:
    """Return a graph's nodes before the first convolution, and those after the last one and its ReLU6."""
    places = [place for place, node in enumerate(nodes) if node.op_type == "Conv"]
    return nodes[: places[0]] + nodes[places[-1] + 2 :]


def check_pair_sums(onnx_file: Path) -> None:
    """Check on the weights alone that no processor's sum of two products can leave the range of 16 bits.

    Kernels pair weights of one output channel as their layout has it, so any two may meet.

    Raises:
        FlowersError: two weights of one channel are too large.
    """
    import onnx

    for tensor in onnx.load(onnx_file).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            weights = onnx.numpy_helper.to_array(tensor).astype(int).reshape(tensor.dims[0], -1)
            for signed in (weights, -weights):
                pair = np.sort(signed.clip(0), axis=1)[:, -2:].sum(1).max()
                if 255 * pair > np.iinfo(np.int16).max:
                    raise FlowersError(
                        f"The int8 model would be less accurate on processors without VNNI: two weights of"
                        f" {tensor.name!r} add up to {pair}; report this with the version of onnxruntime."
                    )

"""Exported files: opened without trusting them, run, and compared with the model that they came from."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2

from flowers_pl.classifier import FlowerClassifier
from flowers_pl.decode import resize_photo
from flowers_pl.errors import FlowersError
from flowers_pl.export import INPUT, METADATA, OUTPUT, need, quiet

NEAR_TIE = 0.01  # two classes whose probabilities are no further apart may change places

# What a .pt2 of ours holds. Of other files, torch would unpickle members and evaluate expressions.
_MEMBERS = re.compile(
    r"models/model\.json|data/(weights|constants)/(model_\w+_config\.json|weight_\d+|tensor_\d+)"
    rf"|data/sample_inputs/model\.pt|extra/{re.escape(METADATA)}|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
_EXPRESSION = re.compile(
    r"(Symbol|Integer|Add|Mul|(positive|integer)=True|'s\d+'|\bs\d+|\d+|\*(?!\*)|[-+(), ])*"
)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(_assert_tensor_metadata|to|_to_copy|_upsample_bilinear2d_aa|add|sub|div|floor|clamp"
    r"|conv2d|batch_norm|hardtanh_?|relu6_?|mean|linear|softmax)\.\w+"
)


class Exported:
    """A model in one file, ready to run; needs no checkpoint.

    Args:
        classes: names, in the order of the outputs.
        image_size: pixels a side that photos are squashed to, inside.
        run: from uint8 (N, 3, H, W) to float32 (N, classes).
    """

    def __init__(self, classes: list[str], image_size: int, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self.classes, self.image_size, self._run = classes, image_size, run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Exported:
        """Open a `.onnx` (run by onnxruntime) or `.pt2` (by torch) that `export` wrote, on the CPU.

        Nothing in it is executed but the network's operators.

        Raises:
            FlowersError: there is no such file, it is torn or not of this project, or onnxruntime is missing.
        """
        path = Path(path)
        openers = {".onnx": _open_onnx, ".pt2": _open_torch}
        if path.suffix not in openers:
            raise FlowersError(
                f"--exported: {str(path)!r} is neither .onnx nor .pt2; give a file that 'export' wrote."
            )
        if not path.is_file():
            raise FlowersError(
                f"--exported: there is no file {str(path)!r}; write one with 'python -m flowers_pl export'."
            )
        facts, run = openers[path.suffix](path)
        try:
            return cls([str(name) for name in json.loads(facts["classes"])], int(facts["image_size"]), run)
        except (KeyError, TypeError, ValueError) as error:
            raise _foreign(path) from error

    def __call__(self, photos: np.ndarray | Tensor) -> np.ndarray:
        """Probabilities, float32 (N, classes), of photos, uint8 (N, 3, H, W), RGB, of any height and width.

        Raises:
            TypeError: `photos` are of another type or shape.
        """
        pixels = photos.cpu().numpy() if isinstance(photos, Tensor) else photos
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise TypeError(f"an exported model takes uint8 (N, 3, H, W), not {pixels.dtype} {pixels.shape}")
        return self._run(pixels)

    def each(self, photos: Iterable[np.ndarray | Tensor]) -> np.ndarray:
        """Probabilities, float32 (photos, classes), of photos, uint8 (3, H, W), each of any size."""
        return np.concatenate([self(photo[None]) for photo in photos])


def _foreign(path: Path) -> FlowersError:
    return FlowersError(
        f"--exported: {str(path)!r} is torn, or not a model that flowers_pl exported; export it again."
    )


Opened = tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]


def _open_onnx(path: Path) -> Opened:
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen errors for bad files, without a common base
        raise _foreign(path) from error
    ends = [one.name for one in (*session.get_inputs(), *session.get_outputs())]
    if ends != [INPUT, OUTPUT]:
        raise _foreign(path)

    def run(photos: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {INPUT: photos})[0])

    return dict(session.get_modelmeta().custom_metadata_map), run


def _open_torch(path: Path) -> Opened:
    try:
        facts = _check_archive(path)
        with quiet():
            module = load_pt2(path).exported_programs["model"].module()
    except FlowersError:
        raise
    except Exception as error:  # torch raises almost anything on damaged archives
        raise _foreign(path) from error

    @torch.inference_mode()
    def run(photos: np.ndarray) -> np.ndarray:
        probabilities: Tensor = module(torch.from_numpy(photos))
        return probabilities.numpy()

    return facts, run


def _check_archive(path: Path) -> dict[str, Any]:
    """The metadata of a `.pt2`, once it is known that loading it evaluates and unpickles nothing of its own.

    torch (2.14) unpickles sample inputs and weights that are marked so, lets sympy evaluate sizes as Python,
    executes guards, looks operators up by name, and loads compiled libraries.

    Raises:
        FlowersError: it holds anything that `export_torch` does not write.
    """
    with PT2ArchiveReader(str(path)) as archive:
        if unknown := [name for name in archive.get_file_names() if not _MEMBERS.fullmatch(name)]:
            raise _refused(path, unknown[0])
        for kind in ("weights", "constants"):
            config = json.loads(archive.read_string(f"data/{kind}/model_{kind}_config.json"))["config"]
            if any(part["use_pickle"] for part in config.values()):
                raise _refused(path, f"pickled {kind}")
        model = json.loads(archive.read_string("models/model.json"))
        facts = json.loads(archive.read_string(f"extra/{METADATA}"))
        try:
            torch.load(io.BytesIO(archive.read_bytes("data/sample_inputs/model.pt")), weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refused(path, "pickled objects") from error
    if model["guards_code"]:
        raise _refused(path, "code")
    for key, text in _strings(model):
        if key == "target" and not _OPERATOR.fullmatch(text):
            raise _refused(path, f"operator {text[:40]!r}")
        if key == "expr_str" and not _EXPRESSION.fullmatch(text):
            raise _refused(path, f"expression {text[:40]!r}")
    return dict(facts)


def _refused(path: Path, what: str) -> FlowersError:
    return FlowersError(
        f"--exported: {str(path)!r} is refused: it holds {what}, which flowers_pl does not write and which"
        " could run code; export the model again."
    )


def _strings(part: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings in parsed JSON, each with the key that it stands under."""
    if isinstance(part, str):
        yield key, part
    elif isinstance(part, (dict, list)):
        for name, value in part.items() if isinstance(part, dict) else ((key, value) for value in part):
            yield from _strings(value, name)


@dataclass(frozen=True)
class Agreement:
    """How far an exported model and the model that it came from agree.

    Args:
        photos: how many were compared.
        agreeing: for how many the likeliest class is the same.
        near_ties: of the others, how many have their two likeliest classes within `NEAR_TIE`, for the model.
        largest_difference: of any probability of any photo.
    """

    photos: int
    agreeing: int
    near_ties: int
    largest_difference: float

    def __str__(self) -> str:
        return (
            f"the same class for {self.agreeing} of {self.photos} photos ({self.near_ties} of the others near"
            f" ties), probabilities at most {self.largest_difference:.2g} apart"
        )

    def verify(self, tolerance: float = 1e-3) -> None:
        """Raise unless likeliest classes agree, but for near ties, and probabilities are within `tolerance`.

        Raises:
            FlowersError: says how far they are apart, or that there was nothing to compare.
        """
        if not self.photos:
            raise FlowersError("The exported model was not checked, for want of photos; give --data.root.")
        if self.agreeing + self.near_ties < self.photos or not self.largest_difference < tolerance:
            raise FlowersError(
                f"The exported model is not the checkpoint's: {self}, where less than {tolerance:g} is"
                " allowed; do not use it, and report this with the versions of torch and onnxruntime."
            )


@torch.inference_mode()
def check_export(exported: Exported, model: FlowerClassifier, photos: Iterable[Tensor]) -> Agreement:
    """Compare an exported model with its checkpoint, on photos at their own sizes.

    Args:
        exported: does its own resize.
        model: sees each photo as `decode.load_photo` would give it.
        photos: uint8 (3, H, W), RGB, each of any size.
    """
    network = model.eval()
    count = agreeing = near_ties = 0
    largest = 0.0
    for photo in photos:
        resized = resize_photo(photo, model.image_size)[None].to(model.device)
        expected = network(resized).softmax(1)[0].cpu().numpy()
        found = exported(photo[None])[0]
        first, second = np.sort(expected)[::-1][:2]
        same = expected.argmax() == found.argmax()
        count, agreeing = count + 1, agreeing + int(same)
        near_ties += int(not same and first - second <= NEAR_TIE)
        largest = float(np.maximum(largest, np.abs(expected - found).max()))  # unlike max(), keeps NaN
    return Agreement(count, agreeing, near_ties, largest)

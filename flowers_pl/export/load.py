"""Open exported files without trusting them, and run them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export.pt2_archive._package import load_pt2

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.decoding import resize_photo
from flowers_pl.export.mobile import import_executorch
from flowers_pl.export.pt2_check import check_archive
from flowers_pl.export.write import INPUT, MAPS, OUTPUT, UNLIKE, quiet, require

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported:
    """An exported model, ready to run without its checkpoint.

    Args:
        classes: class names, in the order of the outputs.
        image_size: height and width in pixels that the model resizes photos to.
        run: a function from uint8 (N, 3, H, W) to what the file computes, by name: `probabilities`, float32
            (N, classes), and, in a file of `export --format web`, `maps` and perhaps `unlike`.
        outputs: these names.

    >>> import tempfile
    >>> from flowers_pl import Exported, FlowerClassifier, export_torch
    >>> model = FlowerClassifier(weights=None)
    >>> model.build(["daisy", "rose"], image_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_torch(model, Path(folder, "final.pt2"))
    ...     exported = Exported.open(Path(folder, "final.pt2"))
    >>> exported.classes, exported.image_size
    (['daisy', 'rose'], 32)
    >>> exported(np.zeros((4, 3, 90, 120), np.uint8)).shape
    (4, 2)
    """

    def __init__(
        self, classes: list[str], image_size: int, run: Run, outputs: Sequence[str] = (OUTPUT,)
    ) -> None:
        self.classes, self.image_size, self._run, self.outputs = classes, image_size, run, tuple(outputs)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Exported:
        """Open a `.onnx`, `.pt2` or `.pte` that `export` wrote, and run it on the CPU.

        onnxruntime, torch or ExecuTorch runs it. Nothing in the file is executed but the network's operators.

        Raises:
            FlowersError: there is no such file, it is damaged or from elsewhere, or its runtime is missing.
        """
        path = Path(path)
        openers = {".onnx": _open_onnx, ".pt2": _open_torch, ".pte": _open_executorch}
        if path.suffix not in openers:
            raise FlowersError(
                f"--exported: {str(path)!r} is none of {', '.join(openers)}; give a file that 'export' wrote."
            )
        if not path.is_file():
            raise FlowersError(
                f"--exported: there is no file {str(path)!r}; write one with 'python -m flowers_pl export'."
            )
        facts, run, outputs = openers[path.suffix](path)
        try:
            classes = [str(name) for name in json.loads(facts["classes"])]
            exported = cls(classes, int(facts["image_size"]), run, outputs)
            shape = exported(np.zeros((1, 3, 8, 8), np.uint8)).shape
        except Exception as error:  # a foreign network may raise anything
            raise _foreign(path) from error
        if shape != (1, len(classes)):
            raise _foreign(path)
        return exported

    def __call__(self, photos: np.ndarray | Tensor) -> np.ndarray:
        """Return probabilities, float32 (N, classes).

        Args:
            photos: uint8 (N, 3, H, W), RGB, of any height and width.

        Raises:
            TypeError: `photos` has another type or shape.
        """
        pixels = photos.cpu().numpy() if isinstance(photos, Tensor) else photos
        return self.explained(pixels)[OUTPUT] if len(pixels) else np.empty((0, len(self.classes)), np.float32)

    def explained(self, photos: np.ndarray) -> dict[str, np.ndarray]:
        """Return all that the file computes of one photo or more, by the names in `outputs`.

        Args:
            photos: uint8 (N, 3, H, W), RGB, of any height and width.

        Raises:
            TypeError: `photos` has another type or shape.
        """
        if photos.dtype != np.uint8 or photos.ndim != 4 or photos.shape[1] != 3:
            raise TypeError(f"an exported model takes uint8 (N, 3, H, W), not {photos.dtype} {photos.shape}")
        return self._run(photos)

    def each(self, photos: Iterable[np.ndarray | Tensor]) -> np.ndarray:
        """Return probabilities, float32 (N, classes), of N photos, uint8 (3, H, W), each of any size."""
        return np.concatenate([self(photo[None]) for photo in photos])


def _foreign(path: Path) -> FlowersError:
    return FlowersError(
        f"--exported: {str(path)!r} is damaged, or not a model that flowers_pl exported; export it again."
    )


Opened = tuple[dict[str, Any], Run, list[str]]
KNOWN = ([OUTPUT], [OUTPUT, MAPS], [OUTPUT, MAPS, UNLIKE])


def _open_onnx(path: Path) -> Opened:
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen errors for bad files, without a common base
        raise _foreign(path) from error
    outputs = [node.name for node in session.get_outputs()]
    if [node.name for node in session.get_inputs()] != [INPUT] or outputs not in KNOWN:
        raise _foreign(path)

    def run(photos: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, map(np.asarray, session.run(None, {INPUT: photos})), strict=True))

    return dict(session.get_modelmeta().custom_metadata_map), run, outputs


def _open_torch(path: Path) -> Opened:
    try:
        facts = check_archive(path)
        with quiet(), path.open("rb") as stream:  # its path may not be UTF-8
            module = load_pt2(stream).exported_programs["model"].module()
    except FlowersError:
        raise
    except Exception as error:  # torch raises almost anything on damaged archives
        raise _foreign(path) from error

    @torch.inference_mode()
    def run(photos: np.ndarray) -> dict[str, np.ndarray]:
        return {OUTPUT: module(torch.from_numpy(photos)).numpy()}

    return facts, run, [OUTPUT]


def _open_executorch(path: Path) -> Opened:
    runtime = import_executorch("runtime").Runtime.get()
    try:
        with redirect_stderr(io.StringIO()):  # the runtime prints there what it reads and what it refuses
            program = runtime.load_program(path.read_bytes())
            facts = {name: program.load_method(name).execute([])[0] for name in ("classes", "image_size")}
            program.load_method("forward")
    except Exception as error:  # its errors are RuntimeError and KeyError, and not documented
        raise _foreign(path) from error
    lock = Lock()  # calls share the method's memory

    def run(photos: np.ndarray) -> dict[str, np.ndarray]:
        resized = resize_photo(torch.from_numpy(photos), facts["image_size"])
        forward = program.load_method("forward")  # the same one each time; `program` holds its bytes
        with lock:
            found = [forward.execute([photo])[0] for photo in resized.split(1)]
        return {OUTPUT: torch.cat(found).numpy()}

    return facts, run, [OUTPUT]

"""`export`: the final model, checked against its checkpoint, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flowers_pl.cli.options import run_function
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import RUNS
from flowers_pl.core.paths import check_writable
from flowers_pl.packs.remote import is_address
from flowers_pl.runs.final_model import find_photos, write_final
from flowers_pl.runs.judgement import results_of
from flowers_pl.runs.web import write_web
from flowers_pl.training.checkpoint_files import newest_best
from flowers_pl.training.classifier import FlowerClassifier


def export(
    ckpt_path: str | None = None,
    format: Literal["torch", "onnx", "executorch", "web"] = "torch",
    quantize: Literal["int8"] | None = None,
    out: str | None = None,
    root: str | None = None,
    runtime: str | None = None,
) -> None:
    """Write the final model for use elsewhere, checked against its checkpoint, and a model card beside it.

    Args:
        ckpt_path: the checkpoint; null for the newest best.ckpt.
        format: torch for a .pt2 of torch.export, onnx, executorch for a .pte for phones, or web for a folder
            with a page that classifies pictures in the browser, for any host of files.
        quantize: int8 for a quantised ONNX file beside the other, or for a page whose model is quantised.
        out: the file to write, or the folder of the page; null for final.pt2, final.onnx, final.pte or web
            beside the checkpoint.
        root: the folder of the training photos where it has moved; without them the model is checked on
            generated images.
        runtime: for web, the folder or the archive of onnxruntime-web; null to download it (33 MB).
    """
    ckpt = Path(ckpt_path) if ckpt_path else newest_best(RUNS)
    suffix = {"torch": ".pt2", "onnx": ".onnx", "executorch": ".pte", "web": ""}[format]
    if quantize and format not in ("onnx", "web"):
        raise FlowersError("--quantize int8 needs --format onnx or web; give both.")
    if runtime is not None and format != "web":
        raise FlowersError("--runtime needs --format web; give both.")
    if out is not None and format != "web" and Path(out).suffix != suffix:
        raise FlowersError(f"--out: the file for --format {format} must end in {suffix}; {out!r} does not.")
    file = Path(out) if out else ckpt.parent / ("web" if format == "web" else f"final{suffix}")
    check_writable(file if format == "web" else file.parent, "--out" if out else "")
    if root is not None and not (is_address(root) or Path(root).is_dir()):
        raise FlowersError(f"--root: there is no folder {root!r}; give that of the training photos.")
    model = FlowerClassifier.load(ckpt)
    folder, placed = find_photos(ckpt, root)
    if format == "web":
        write_web(model, ckpt, file, folder, placed, Path(runtime) if runtime else None, quantize)
    else:
        write_final(model, ckpt, file, folder, placed, quantize=quantize, results=results_of(ckpt))


def run(args: list[str]) -> None:
    """Run the subcommand."""
    run_function(export, args)

"""`export`: the final model, checked against its checkpoint, and its card."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import check_writable
from flowers_pl.core.names import CARD, EXPORTS, KEY, LEFT_OUT, RUNS, TEST_JSON
from flowers_pl.data.batches import Prediction
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.folder import LeftOut
from flowers_pl.data.split import TRAIN, Placed
from flowers_pl.runs.folder import readable_photos, rows_of, settings_of
from flowers_pl.training.checkpoint_files import newest_best, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.weight_average import AVERAGE

log = logging.getLogger(__name__)
CHECKED = 64  # validation photos that an export made by `fit` is checked on
CALIBRATED = 200  # training photos that int8 is calibrated on


def export(
    ckpt_path: str | None = None,
    format: Literal["torch", "onnx"] = "torch",
    quantize: Literal["int8"] | None = None,
    out: str | None = None,
) -> None:
    """Write the final model for use elsewhere, checked against its checkpoint, and a model card beside it.

    Args:
        ckpt_path: the checkpoint; null for the newest best.ckpt.
        format: torch for a .pt2 of torch.export, or onnx.
        quantize: int8 for a quantised ONNX file beside the other.
        out: the file to write; null for final.pt2 or final.onnx beside the checkpoint.
    """
    ckpt = Path(ckpt_path) if ckpt_path else newest_best(RUNS)
    suffix = {"torch": ".pt2", "onnx": ".onnx"}[format]
    if quantize and format != "onnx":
        raise FlowersError("--quantize int8 goes with --format onnx; give both.")
    if out is not None and Path(out).suffix != suffix:
        raise FlowersError(f"--out: a file for --format {format} must end in {suffix}, not as {out!r} does.")
    file = Path(out) if out else ckpt.parent / f"final{suffix}"
    check_writable(file.parent, "--out" if out else "")
    data = FlowersDataModule(**settings_of(ckpt))
    data.prepare_data()
    data.setup("validate")
    model = FlowerClassifier.load(ckpt)
    write_final(model, ckpt, file, data, quantize=quantize)


def write_final(
    model: FlowerClassifier,
    ckpt: Path,
    file: Path,
    data: FlowersDataModule,
    checked: int | None = None,
    quantize: str | None = None,
    results: Mapping[str, Any] | None = None,
) -> None:
    """Export a model, check it on validation photos at their own sizes, and write its card.

    Args:
        model: the trained model.
        ckpt: where it comes from.
        file: where it goes; .onnx or .pt2.
        data: set up, with the validation side.
        checked: on how many photos, evenly spread; None for all.
        quantize: "int8" for a quantised ONNX file too.
        results: how the model was judged, for its card where `test` has not judged it.

    Raises:
        FlowersError: the exported model does not agree with the checkpoint.
    """
    from flowers_pl.export.load import Exported
    from flowers_pl.export.verify import check_export
    from flowers_pl.export.write import export_onnx, export_torch

    log.info("Writing %s, then comparing it with %s …", file, ckpt)
    (export_onnx if file.suffix == ".onnx" else export_torch)(model, file)
    judged = data.judged[:: max(1, len(data.judged) // checked)] if checked else data.judged
    photos = readable_photos(data.root, (photo.path for photo in judged))
    agreement = check_export(Exported.open(file), model, (photo for _, photo in photos))
    agreement.verify()
    files = {file.name: str(agreement)}
    log.info("%s: %s", file, files[file.name])
    if quantize:
        files |= _quantized(file, data)
    write_card(file.parent, ckpt, data.placed, files, results)


def write_card(
    folder: Path,
    ckpt: Path,
    placed: Sequence[Placed],
    files: Mapping[str, str] = {},
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write a model card, with what was measured of a checkpoint and of all that was exported from it.

    What is there of other weights than the checkpoint's is not told of, but named in the log.

    Args:
        folder: where it goes, and where the exported files lie.
        ckpt: the checkpoint; `test.json` and `left_out.csv` beside it are taken too.
        placed: the photos of both sides.
        files: what is new: from a file's name to what was measured of it.
        results: of this checkpoint, to tell of, now and later, where `test` has none.
    """
    from flowers_pl.export.model_card import model_card

    checkpoint, listed = read_checkpoint(ckpt), folder / EXPORTS
    step = checkpoint["global_step"]
    before, tested = _read(listed), _read(ckpt.parent / TEST_JSON)
    if before.get("step", step) != step:
        for name in before["files"].keys() - files.keys():
            if (folder / name).exists():
                log.warning("%s is of other weights than %s; export it again.", folder / name, ckpt)
        before = {}
    if tested.get("step", step) != step:
        log.warning("%s is of other weights than %s; 'test' renews it.", ckpt.parent / TEST_JSON, ckpt)
        tested = {}
    every = {**before.get("files", {}), **files}
    results = results or before.get("results")
    written = {"step": step, "files": every, "results": results}
    listed.write_text(json.dumps(written, indent=2) + "\n")
    card = model_card(
        checkpoint[KEY] | {"average": checkpoint.get(AVERAGE, {}).get("decay", 0)},
        checkpoint["hyper_parameters"],
        placed,
        [LeftOut(**row) for row in rows_of(ckpt.parent / LEFT_OUT)],
        tested or results,
        every,
    )
    (folder / CARD).write_text(card)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _quantized(file: Path, data: FlowersDataModule) -> dict[str, str]:
    """Write the int8 model and say what it costs."""
    from flowers_pl.export.load import Exported
    from flowers_pl.export.verify import accuracy_loss
    from flowers_pl.export.write import quantize_int8

    small = file.with_name(f"{file.stem}_int8.onnx")
    log.info("Writing %s, then judging both on the validation side; this takes a minute or more …", small)
    training = [one.path for one in data.placed if one.side == TRAIN]
    sample = training[:: max(1, len(training) // CALIBRATED)]
    quantize_int8(file, small, (photo for _, photo in readable_photos(data.root, sample)))
    label_of = {photo.path: data.classes.index(photo.label) for photo in data.judged}
    labels = np.array([label_of[path] for path, _ in readable_photos(data.root, label_of)])
    before, after = (
        Exported.open(one).each(photo for _, photo in readable_photos(data.root, label_of))
        for one in (file, small)
    )
    what = f"{small.stat().st_size / 1e6:.2f} MB, {accuracy_loss(before, after, labels)}"
    log.info("%s: %s", small, what)
    return {small.name: what}


def predict_exported(file: Path, data: FlowersDataModule) -> tuple[list[str], list[Prediction]]:
    """Predict photos by an exported model; needs neither its checkpoint nor the photos that it learnt from.

    The loader's workers decode and resize while the model runs; its own resize leaves such photos as they
    are.

    Args:
        file: .pt2 or .onnx, int8 or not.
        data: with a `predict_root`; takes classes and image size from the file.

    Returns:
        The classes, and a prediction for each batch.

    Raises:
        FlowersError: the file is not one that `export` wrote, or there are no photos.
    """
    from flowers_pl.export.load import Exported

    exported = Exported.open(file)
    log.info("Exported model: %s", file)
    data.classes, data.image_size = exported.classes, exported.image_size
    data.setup("predict")
    return exported.classes, [
        Prediction(batch.rows, torch.from_numpy(exported(batch.photos)), batch.unreadable)
        for batch in data.predict_dataloader()
    ]

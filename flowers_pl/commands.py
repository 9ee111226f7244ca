"""What is done with a trained run besides judging it: explanations, and the final model."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowers_pl.batches import Prediction
from flowers_pl.checkpointing import KEY, newest_best, read_checkpoint
from flowers_pl.classifier import FlowerClassifier
from flowers_pl.datamodule import FlowersDataModule
from flowers_pl.decode import resize_photo
from flowers_pl.errors import FlowersError
from flowers_pl.photos import LeftOut, list_pictures
from flowers_pl.runs import CARD, RUNS, placed_of, readable_photos, rows_of, save, settings_of, show_pictures
from flowers_pl.split import TRAIN, VAL
from flowers_pl.tracking import LEFT_OUT

log = logging.getLogger(__name__)
CHECKED = 64  # validation photos that an export made by `fit` is checked on
CALIBRATED = 200  # training photos that int8 is calibrated on


def explain(
    ckpt_path: str | None = None,
    images: str | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    target: str | None = None,
    each: bool = False,
    most: int = 40,
    faithfulness: int = 0,
) -> None:
    """Show where the model looks: heat maps in the folder gradcam of the run.

    Args:
        ckpt_path: the checkpoint; null for the newest best.ckpt.
        images: a photo or a folder; null for a sample of the validation side.
        method: gradcam, gradcam++, hirescam, xgradcam, layercam, eigencam, eigengradcam, scorecam or
            ablationcam.
        layer: dotted name of a layer of the network; null for the last feature block.
        target: the class to explain; null for each photo's likeliest.
        each: write one PNG for each photo too.
        most: at most so many photos.
        faithfulness: measure on so many of the photos how much the maps can be trusted (slow); 0 for none.
    """
    from flowers_pl.explain import explain_photos, explanation_figure, grid_figure, overlay

    if most < 1 or faithfulness < 0:
        raise FlowersError(
            f"--most must be at least 1 and --faithfulness at least 0, not {most} and {faithfulness}."
        )
    ckpt = Path(ckpt_path) if ckpt_path else newest_best(RUNS)
    model = FlowerClassifier.load(ckpt)
    names, photos, truths = _to_explain(ckpt, model, images, most)
    explained = explain_photos(model, photos, truths, target, method, layer)
    folder = ckpt.parent / "gradcam"
    save(explanation_figure(explained[0], names[0]), folder / "example.png")
    kind = "drawings" if images is None and settings_of(ckpt).get("drawn") else "photos"
    title = f"{method}, {len(explained)} {kind}" + ("" if target is None else f": what speaks for {target}")
    save(grid_figure(explained, model.classes, title), folder / "gradcam_grid.png")
    np.savez_compressed(folder / "maps.npz", paths=names, maps=np.stack([one.heat for one in explained]))
    for name, one in zip(names, explained, strict=True):
        if each:
            file = folder / "each" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(overlay(one.photo, one.heat)).save(file)
    if faithfulness:
        _measure(model, photos[:faithfulness], method, layer, folder, kind)
    show_pictures(folder)
    log.info("%d photos explained by %s of %s: %s.", len(explained), method, ckpt, folder)


def _to_explain(
    ckpt: Path, model: FlowerClassifier, images: str | None, most: int
) -> tuple[list[str], list[Tensor], list[str | None]]:
    """Names, photos at their own size, and classes where they are known: those of the folders that photos lie
    in."""
    from flowers_pl.explain import even_sample

    if images is None:
        placed, root = placed_of(ckpt), Path(read_checkpoint(ckpt)[KEY]["data"]["root"])
        validating = [one for one in placed if one.side == VAL]
        labels = np.array([model.classes.index(one.label) for one in validating])
        paths = [validating[row].path for row in even_sample(labels, most)]
    else:
        root, paths = list_pictures(images, "--images")
        paths = paths[:most]
    names, photos, truths = [], [], []
    for path, photo in readable_photos(root, paths):
        photos.append(photo)
        names.append(path)
        above = (root / path).parent.name
        truths.append(above if above in model.classes else None)
    if not photos:
        raise FlowersError(f"--images: none of the photos in {str(root)!r} can be read; give others.")
    return names, photos, truths


def _measure(
    model: FlowerClassifier,
    photos: Sequence[Tensor],
    method: str,
    layer: str | None,
    folder: Path,
    kind: str,
) -> None:
    from flowers_pl.faithfulness import faithfulness, faithfulness_figure

    squares = torch.stack([resize_photo(photo, model.image_size) for photo in photos])
    measured = faithfulness(model, squares, method=method, layer=layer)
    (folder / "explain.json").write_text(json.dumps(measured, indent=2))
    save(faithfulness_figure(measured, kind), folder / "faithfulness.png")


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
    from flowers_pl.exported import Exported

    exported = Exported.open(file)
    log.info("Exported model: %s", file)
    data.classes, data.image_size = exported.classes, exported.image_size
    data.setup("predict")
    return exported.classes, [
        Prediction(batch.rows, torch.from_numpy(exported(batch.photos)), batch.unreadable)
        for batch in data.predict_dataloader()
    ]


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
    if quantize and format != "onnx":
        raise FlowersError("--quantize int8 goes with --format onnx; give both.")
    data = FlowersDataModule(**settings_of(ckpt))
    data.prepare_data()
    data.setup("validate")
    model = FlowerClassifier.load(ckpt)
    file = Path(out) if out else ckpt.parent / ("final.pt2" if format == "torch" else "final.onnx")
    write_final(model, ckpt, file, data, quantize=quantize)


def write_final(
    model: FlowerClassifier,
    ckpt: Path,
    file: Path,
    data: FlowersDataModule,
    checked: int | None = None,
    quantize: str | None = None,
) -> None:
    """Export a model, check it on validation photos at their own sizes, and write its card.

    Args:
        model: the trained model.
        ckpt: where it comes from.
        file: where it goes; .onnx or .pt2.
        data: set up, with the validation side.
        checked: on how many photos, evenly spread; None for all.
        quantize: "int8" for a quantised ONNX file too.

    Raises:
        FlowersError: the exported model does not agree with the checkpoint.
    """
    from flowers_pl.agreement import check_export
    from flowers_pl.export import export_onnx, export_torch
    from flowers_pl.exported import Exported
    from flowers_pl.model_card import model_card

    (export_onnx if file.suffix == ".onnx" else export_torch)(model, file)
    judged = data.judged[:: max(1, len(data.judged) // checked)] if checked else data.judged
    photos = readable_photos(data.root, (photo.path for photo in judged))
    agreement = check_export(Exported.open(file), model, (photo for _, photo in photos))
    agreement.verify()
    files = {file.name: str(agreement)}
    log.info("%s: %s", file, agreement)
    if quantize:
        files |= _quantized(file, data)
    result = ckpt.parent / "test.json"
    with_left_out = ckpt.parent / LEFT_OUT
    checkpoint = read_checkpoint(ckpt)
    card = model_card(
        checkpoint[KEY],
        checkpoint["hyper_parameters"],
        data.placed,
        [LeftOut(**row) for row in rows_of(with_left_out)],
        json.loads(result.read_text()) if result.is_file() else None,
        files,
    )
    (file.parent / CARD).write_text(card)


def _quantized(file: Path, data: FlowersDataModule) -> dict[str, str]:
    """Write the int8 model and say what it costs."""
    from flowers_pl.agreement import accuracy_loss
    from flowers_pl.export import quantize_int8
    from flowers_pl.exported import Exported

    small = file.with_name(f"{file.stem}_int8.onnx")
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

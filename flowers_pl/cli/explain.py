"""`explain`: pictures of where a model looks, in its run's folder."""

from __future__ import annotations

import itertools
import logging
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowers_pl.cli.options import run_function
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import write_json
from flowers_pl.core.names import KEY, RUNS
from flowers_pl.core.paths import check_writable
from flowers_pl.core.text import nfc, plural
from flowers_pl.data.decoding import resize_photo
from flowers_pl.data.folder import TRAIN, VAL, list_pictures
from flowers_pl.data.packed import folder_of
from flowers_pl.data.sampling import even_sample
from flowers_pl.runs.folder import readable_photos, split_of
from flowers_pl.runs.results import log_pictures, save_figure
from flowers_pl.training.checkpoint_files import newest_best, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

log = logging.getLogger(__name__)


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
        images: a photo or a folder; null for a sample of the validation side, or of all photos of a refit.
        method: gradcam, gradcam++, hirescam, xgradcam, layercam, eigencam, eigengradcam, scorecam or
            ablationcam.
        layer: dotted name of a layer of the network; null for the last feature block.
        target: the class to explain; null for each photo's likeliest.
        each: write one PNG for each photo too.
        most: at most so many photos.
        faithfulness: measure on so many of the photos how much the maps can be trusted (slow); 0 for none.
    """
    from flowers_pl.explain.explanations import explain_photos
    from flowers_pl.explain.figures import explanation_figure, grid_figure, overlay

    for option, given, least in (("most", most, 1), ("faithfulness", faithfulness, 0)):
        if given < least:
            raise FlowersError(f"--{option} must be at least {least}, not {given}.")
    ckpt = Path(ckpt_path) if ckpt_path else newest_best(RUNS)
    model = FlowerClassifier.load(ckpt)
    folder = ckpt.parent / "gradcam"
    check_writable(folder)
    names, photos, squares, truths = _to_explain(ckpt, model, images, most, each)
    explained = explain_photos(model, photos, truths, target, method, layer, squares)
    save_figure(explanation_figure(explained[0], names[0]), folder / "example.png")
    title = f"{method}, {plural(len(explained), 'image')}"
    if target is not None:
        title += f": evidence for {target}"
    save_figure(grid_figure(explained, model.classes, title), folder / "gradcam_grid.png")
    np.savez_compressed(folder / "maps.npz", paths=names, maps=np.stack([one.heat for one in explained]))
    for name, one in zip(names, explained, strict=True):
        if each:
            file = folder / "each" / _name_of_picture(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(overlay(one.photo, one.heat)).save(file)
    for old in ("explain.json", "faithfulness.png"):  # of other photos, perhaps
        (folder / old).unlink(missing_ok=True)
    if faithfulness:
        rows = np.linspace(0, len(photos) - 1, min(faithfulness, len(photos))).round().astype(int).tolist()
        targets = [model.classes.index(explained[row].target) for row in rows]
        _measure(model, squares[rows], targets, method, layer, folder)
    log_pictures(folder)
    log.info("%s explained by %s of %s: %s.", plural(len(explained), "image"), method, ckpt, folder)


def _name_of_picture(path: str) -> str:
    """Return where the overlay of a photo goes: its path and .png, cut to what a file system takes."""
    folder, _, name = path.rpartition("/")
    if len(os.fsencode(f"{name}.png")) > 255:
        name = f"{os.fsdecode(os.fsencode(name)[:200])}-{zlib.crc32(os.fsencode(name)):08x}"
    return f"{folder}/{name}.png" if folder else f"{name}.png"


def _to_explain(
    ckpt: Path, model: FlowerClassifier, images: str | None, most: int, whole: bool
) -> tuple[list[str], list[Tensor], Tensor, list[str | None]]:
    """Return names, photos for the figures (the first, or all, at their own size), photos for the model, and
    classes where they are known: those of the run's split, or of the folders that photos lie in."""
    from flowers_pl.explain.figures import IN_GRID

    if images is None:
        placed, root = split_of(ckpt), folder_of(read_checkpoint(ckpt)[KEY]["data"]["root"])
        validating = [one for one in placed if one.side == (VAL if model.refit is None else TRAIN)]
        labels = np.array([model.classes.index(one.label) for one in validating])
        chosen = [validating[row] for row in even_sample(labels, most, seed=0)]
        paths, label_of = [one.path for one in chosen], {one.path: one.label for one in chosen}
    else:
        label_of = {}
        root, paths = list_pictures(images, "--images")
    known = {nfc(name): name for name in model.classes}
    names: list[str] = []
    photos: list[Tensor] = []
    squares: list[Tensor] = []
    truths: list[str | None] = []
    for path, photo in itertools.islice(readable_photos(root, paths), most):
        photos.append(photo if whole or not photos else resize_photo(photo, IN_GRID))
        squares.append(resize_photo(photo, model.image_size))
        names.append(path)
        truths.append(label_of.get(path) or known.get(nfc((root / path).parent.name)))
    if not photos:
        raise FlowersError(
            f"--images: nothing in {images or str(root)!r} can be read as a photo; give others."
        )
    return names, photos, torch.stack(squares), truths


def _measure(
    model: FlowerClassifier,
    squares: Tensor,
    targets: list[int],
    method: str,
    layer: str | None,
    folder: Path,
) -> None:
    from flowers_pl.explain.faithfulness import faithfulness
    from flowers_pl.explain.figures import faithfulness_figure

    log.info("Measuring on %s how far the maps can be trusted …", plural(len(squares), "image"))
    measured = faithfulness(model, squares, targets, method, layer)
    write_json(folder / "explain.json", measured)
    save_figure(faithfulness_figure(measured), folder / "faithfulness.png")
    own, chance = (measured["maps"][name] for name in (method, "random"))
    log.info(
        "ROAD %+.3f (random maps %+.3f), insertion %.3f (%.3f), deletion %.3f (%.3f, lower is better);"
        " explain.json has the rest.",
        *(one[name] for name in ("road", "insertion_auc", "deletion_auc") for one in (own, chance)),
    )
    if own["road"] <= chance["road"]:
        log.warning("By ROAD these maps are no better than random ones: they do not show what decides.")


def run(args: list[str]) -> None:
    """Run the subcommand."""
    run_function(explain, args)

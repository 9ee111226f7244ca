"""The final model of a run: written, compared with its checkpoint, described by a card, and run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replacing, write_json
from flowers_pl.core.names import CARD, EXPORTS, KEY, LEFT_OUT, NEW_CARD, SPLIT, TEST_JSON
from flowers_pl.core.system import processor
from flowers_pl.core.text import plural
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.folder import TRAIN, VAL
from flowers_pl.data.packed import folder_of
from flowers_pl.data.split import Placed
from flowers_pl.packs.roots import is_remote
from flowers_pl.runs.folder import any_there, readable_photos, rows_of, settings_of, split_of
from flowers_pl.runs.judgement import identity_of, is_of, read_known
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.weight_average import AVERAGE

log = logging.getLogger(__name__)
NUM_CHECKED = 64  # validation photos that the final model of `fit` is checked on
NUM_CALIBRATING = 200  # training photos that int8 is calibrated on


def find_photos(ckpt: Path, root: str | None = None) -> tuple[Path, list[Placed]]:
    """Find the photos that a checkpoint was trained and validated with.

    Args:
        ckpt: the checkpoint; the split.csv beside it is used where there is one.
        root: the folder of the photos where it has moved.

    Returns:
        Their folder, which need not exist any more, and their split, empty where it cannot be known.
    """
    settings = settings_of(ckpt) | ({} if root is None else {"root": root})
    folder = folder_of(settings.get("root", ""))
    if (ckpt.parent / SPLIT).is_file():
        return folder, split_of(ckpt)
    if "root" not in settings or not (is_remote(folder) or folder.is_dir()):
        return folder, []
    data = FlowersDataModule(**settings)
    try:
        data.prepare_data()
        data.setup("validate")
    except FlowersError as error:
        log.warning("The photos that %s was trained with are not known: %s", ckpt, error)
        return folder, []
    return data.root, data.placed


def write_final(
    model: FlowerClassifier,
    ckpt: Path,
    file: Path,
    root: Path,
    placed: Sequence[Placed],
    most: int | None = None,
    quantize: str | None = None,
    results: Mapping[str, Any] | None = None,
) -> None:
    """Export a model, compare it with its checkpoint, and write its card.

    It is compared on validation photos, which are training photos too in a refit, or on generated images
    where none of the photos can be read. An older file stays where the new one does not agree.

    Args:
        model: the trained model.
        ckpt: where it comes from.
        file: where it goes; .onnx, .pt2 or .pte.
        root: the folder of the photos.
        placed: their split.
        most: check on at most about so many of the validation photos, evenly spread; None for all.
        quantize: "int8" for a quantised ONNX file too.
        results: how the model was evaluated, for its card where `test` has not evaluated it.

    Raises:
        FlowersError: the file cannot be written or does not agree, or int8 has no photos to calibrate on.
    """
    from flowers_pl.export.mobile import export_executorch
    from flowers_pl.export.write import export_onnx, export_torch, unwritable

    if quantize:
        check_calibration(root, placed)
    log.info("Writing %s and comparing it with %s …", file, ckpt)
    write = {".onnx": export_onnx, ".pt2": export_torch, ".pte": export_executorch}[file.suffix]
    try:
        with replacing(file) as unfinished:
            try:
                write(model, unfinished)
                files = {file.name: compare(unfinished, model, root, placed, most)}
            except FlowersError as error:
                raise FlowersError(str(error).replace(str(unfinished), str(file))) from error
    except OSError as error:
        raise unwritable(file, error) from error
    log.info("%s: %s", file, files[file.name])
    if quantize:
        files |= write_int8(file, root, placed)
    write_card(file.parent, ckpt, placed, files, results)


def check_calibration(root: Path, placed: Sequence[Placed]) -> None:
    """Refuse at once to calibrate int8 where there are no training photos; raise FlowersError."""
    from flowers_pl.export.quantize import NO_PHOTOS

    if not any_there(root, (photo.path for photo in placed if photo.side == TRAIN)):
        raise FlowersError(NO_PHOTOS)


def compare(
    file: Path, model: FlowerClassifier, root: Path, placed: Sequence[Placed], most: int | None = None
) -> str:
    """Compare an exported file with its checkpoint, as `write_final` does, and return the result in words.

    Raises:
        FlowersError: they do not agree.
    """
    from flowers_pl.export.load import Exported
    from flowers_pl.export.verify import check_export, generated_images

    side, called = (VAL, "validation image") if model.refit is None else (TRAIN, "training image")
    paths = [photo.path for photo in placed if photo.side == side]
    checked = paths[:: max(1, len(paths) // most) if most else 1]
    exported, photos = Exported.open(file), (photo for _, photo in _photos_there(root, checked))
    agreement = check_export(exported, model, photos, called)
    if not agreement.photos:
        log.warning("No %s is below %r, so the export is checked on generated images.", called, str(root))
        agreement = check_export(exported, model, generated_images(), "generated image")
    agreement.verify()
    return f"{agreement}; checked on {processor()}"


def _photos_there(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield paths and photos; name those that are missing, but for a folder that holds none of them."""
    listed = list(paths)
    return readable_photos(root, listed if any_there(root, listed) else ())


def write_int8(file: Path, root: Path, placed: Sequence[Placed]) -> dict[str, str]:
    """Write the int8 model beside the float one, and return its name with what it costs.

    Raises:
        FlowersError: there are no training photos to calibrate on, or the file cannot be written.
    """
    from flowers_pl.export.load import Exported
    from flowers_pl.export.quantize import quantize_int8
    from flowers_pl.export.verify import accuracy_loss

    small = file.with_name(f"{file.stem}_int8.onnx")
    log.info("Writing %s and evaluating both on the validation photos; this takes a minute or more …", small)
    training = [photo.path for photo in placed if photo.side == TRAIN]
    sample = training[:: max(1, len(training) // NUM_CALIBRATING)]
    quantize_int8(file, small, (photo for _, photo in _photos_there(root, sample)))
    label_of = {photo.path: photo.label for photo in placed if photo.side == VAL}
    before, after = Exported.open(file), Exported.open(small)
    photos = _photos_there(root, label_of)
    rows = [(label_of[path], before(photo[None])[0], after(photo[None])[0]) for path, photo in photos]
    measured = "accuracy not measured, because no validation photo could be read"
    if rows:
        labels, floats, ints = zip(*rows, strict=True)
        numbers = np.array([before.classes.index(label) for label in labels])
        loss = accuracy_loss(np.array(floats), np.array(ints), numbers)
        measured = f"{loss} on {plural(len(rows), 'validation image')}"
    measured = (
        f"{small.stat().st_size / 1e6:.2f} MB, {measured}; checked on {processor()}. Its weights are so small"
        " that products add up within 16 bits, so that it is as accurate on processors without VNNI"
    )
    log.info("%s: %s", small, measured)
    return {small.name: measured}


def write_card(
    folder: Path,
    ckpt: Path,
    placed: Sequence[Placed],
    files: Mapping[str, str] = {},
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write the model card of a checkpoint and of all that was exported from it.

    What was measured of another model than the checkpoint's is left out of the card and named in the log. A
    card that a person has changed is kept, and the new one is written beside it.

    Args:
        folder: where it goes, beside the exported files.
        ckpt: the checkpoint; `test.json` and `left_out.csv` beside it are used too.
        placed: the photos of both sides.
        files: what is new: from a file's name to what was measured of it.
        results: of this checkpoint, for this and later cards where `test` has none.
    """
    from flowers_pl.export.model_card import model_card, sealed

    checkpoint, listed = read_checkpoint(ckpt), folder / EXPORTS
    identity, refit = identity_of(checkpoint), checkpoint[KEY].get("refit_of")
    before = read_known(listed, step=int, files=dict)
    tested = read_known(ckpt.parent / TEST_JSON, judged=str, photos=int)
    if not is_of(before, identity):
        for name in before["files"].keys() - files.keys():
            if (folder / name).exists():
                log.warning("%s is of another model than %s; export it again.", folder / name, ckpt)
        before = {}
    if not is_of(tested, identity):
        log.warning("%s is of another model than %s; run 'test' again.", ckpt.parent / TEST_JSON, ckpt)
        tested = {}
    every = {**before.get("files", {}), **files}
    results = results or before.get("results") or (refit and refit["results"])
    write_json(listed, {**identity, "files": every, "results": results})
    card = model_card(
        checkpoint[KEY] | {"average": checkpoint.get(AVERAGE, {}).get("decay", 0)},
        checkpoint["hyper_parameters"],
        placed,
        len(rows_of(ckpt.parent / LEFT_OUT, ["path"])),
        tested or results,
        every,
    )
    with replacing(_place_of_card(folder)) as unfinished:
        unfinished.write_text(sealed(card), encoding="utf-8")


def _place_of_card(folder: Path) -> Path:
    """Return where a new card goes: not over one that a person has changed, for example filled in."""
    from flowers_pl.export.model_card import is_sealed

    card = folder / CARD
    if not card.is_file() or is_sealed(card.read_text(encoding="utf-8", errors="replace")):
        return card
    log.warning(
        "%s was changed by hand, so it is kept, and the new card is %s; copy what you need.",
        card, folder / NEW_CARD,
    )  # fmt: skip
    return folder / NEW_CARD

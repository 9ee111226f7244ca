"""The final model of a run as a page: checked, with what it costs in 8 bits, and its card beside it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import flowers_pl
from flowers_pl.data.split import Placed
from flowers_pl.runs.final_model import check_calibration, compare, write_card, write_int8
from flowers_pl.runs.judgement import Judgement, identity_of, judgement_of, results_of
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

log = logging.getLogger(__name__)


def write_web(
    model: FlowerClassifier,
    ckpt: Path,
    folder: Path,
    root: Path,
    placed: Sequence[Placed],
    runtime: Path | None = None,
    quantize: str | None = None,
) -> None:
    """Write a folder that any host of files can serve: a page that classifies pictures in the browser.

    Args:
        model: the trained model.
        ckpt: where it comes from.
        folder: where the page goes.
        root: the folder of the photos.
        placed: their split.
        runtime: as `web_runtime` takes it.
        quantize: "int8" for a model in 8 bits.

    Raises:
        FlowersError: the exported model does not agree with the checkpoint, there are no training photos to
            calibrate int8 on, or the runtime is missing.
    """
    from flowers_pl.export.explained import export_explained
    from flowers_pl.export.web_page import MODEL, page_facts, write_page
    from flowers_pl.export.web_runtime import web_runtime

    if quantize:
        check_calibration(root, placed)
    files = web_runtime(runtime)
    log.info("Writing the page in %s and comparing its model with %s …", folder, ckpt)
    with TemporaryDirectory() as scratch:
        file = Path(scratch, MODEL)
        export_explained(model, file)
        measured = compare(file, model, root, placed)
        if quantize:
            ((name, measured),) = write_int8(file, root, placed).items()
            file = file.with_name(name)
        else:
            log.info("%s: %s", MODEL, measured)
        good = judgement_of(ckpt.parent, identity_of(read_checkpoint(ckpt)))
        good = Judgement() if quantize else good  # which is of the weights before they were rounded
        name = ckpt.resolve().parent.name
        facts = page_facts(name, model.classes, model.image_size, *good, flowers_pl.__version__)
        size = write_page(folder, file.read_bytes(), facts, files)
    results = results_of(ckpt)
    if quantize and results is not None:
        results |= {"judged": f"{results['judged']}, before the weights were rounded to 8 bits"}
    write_card(folder, ckpt, placed, {MODEL: measured}, results)
    log.info(
        "The page has %.1f MB; try it with 'python -m http.server --directory %s', then put the folder on any"
        " host of files.",
        size / 1e6, folder,
    )  # fmt: skip

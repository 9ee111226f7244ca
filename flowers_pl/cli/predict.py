"""`predict`: a table of photos with the probability of each class."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import Namespace

from flowers_pl.cli.checkpoints import exported_model
from flowers_pl.cli.evaluating import NOTHING, Evaluation, prepare
from flowers_pl.cli.options import Options
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import PREDICTIONS, TEST_JSON
from flowers_pl.core.screen import show
from flowers_pl.core.signals import Stopped
from flowers_pl.core.text import plural
from flowers_pl.evaluation.predictions import PredictionTable
from flowers_pl.runs.predicting import WritePredictions, predict_exported
from flowers_pl.runs.ranks import digest_of

log = logging.getLogger(__name__)


def run(args: list[str]) -> None:
    """Write predictions.csv and print its first rows."""
    exported = exported_model(args)
    evaluation = prepare("predict", args, _add_options, exported, _output)
    if exported is not None:
        _run_exported(evaluation, exported)
        return
    model = evaluation.load()
    evaluation.data.setup("predict")
    if not evaluation.trainer.is_global_zero:
        evaluation.predict(model, WritePredictions(None))
        return

    def fill(table: PredictionTable) -> None:
        evaluation.predict(model, WritePredictions(table))

    _write(evaluation, model.classes, model.novelty is not None, fill)


def _run_exported(evaluation: Evaluation, file: Path) -> None:
    from flowers_pl.export.load import Exported

    if evaluation.trainer.world_size > 1:
        raise FlowersError("--exported: an exported model runs in one process; leave out --trainer.devices.")
    exported, data = Exported.open(file), evaluation.data
    log.info("Exported model: %s", file)
    data.classes, data.image_size = exported.classes, exported.image_size
    data.setup("predict")

    def fill(table: PredictionTable) -> None:
        data.num_predicted = table.done.rows
        for prediction in predict_exported(exported, data, evaluation.trainer.limit_predict_batches):
            table.add_predictions([prediction])

    _write(evaluation, exported.classes, False, fill)


def _write(
    evaluation: Evaluation, class_names: Sequence[str], scored: bool, fill: Callable[[PredictionTable], None]
) -> None:
    """Write the table, from its first row or from where it ended, and say what is in it.

    Args:
        evaluation: what to predict.
        class_names: of the model.
        scored: whether the model has a measure of novelty.
        fill: adds the rows that the table lacks.
    """
    settings, data, folder = evaluation.settings, evaluation.data, evaluation.folder
    file, paths = Path(settings.out or folder / PREDICTIONS), data.file_paths
    if settings.resume and _limited(evaluation):
        raise FlowersError(
            "--trainer.limit_predict_batches: --resume goes on to the last photo; leave one of them out."
        )
    table = PredictionTable(file, paths, class_names, scored, _origin(evaluation))
    try:
        with table.growing(settings.resume):
            before = table.done.rows
            if before:
                log.info("%s has %s; the others follow.", table.partial, plural(before, "row"))
            if before < len(paths):
                fill(table)
                if table.done.rows == before:
                    raise FlowersError(NOTHING)
            if settings.out is None and file.exists() and (folder / TEST_JSON).exists():
                log.warning("%s is overwritten; it may be that of 'test' (--out names another file).", file)
    except Stopped as stop:
        stop.advice = "the same command with --resume goes on from here"
        raise
    show(table.lines())
    num_rows, _, num_failed = table.done
    if num_failed == num_rows:
        raise FlowersError(
            f"--data.predict_root: nothing in {data.predict_root!r} can be read as a photo; {file} gives the"
            " reasons."
        )
    unread = f", {plural(num_failed, 'file')} that cannot be read" if num_failed else ""
    log.info("%s%s: %s.", plural(num_rows - num_failed, "prediction"), unread, file)


def _limited(evaluation: Evaluation) -> bool:
    limit = evaluation.trainer.limit_predict_batches
    return isinstance(limit, int) or limit < 1


def _origin(evaluation: Evaluation) -> dict[str, str]:
    """Return what decides the rows of the table, by the names under which the user knows it."""
    data, settings = evaluation.data, evaluation.settings
    with open(evaluation.checkpoint or settings.exported, "rb") as stream:
        model = hashlib.file_digest(stream, "blake2b").hexdigest()[:32]
    return {
        "--exported" if evaluation.checkpoint is None else "--ckpt_path": model,
        "--data.predict_root": digest_of([os.path.abspath(data.predict_root or ""), *data.file_paths]),
        "--data.batch_size": str(data.batch_size),
        "--trainer.precision": str(evaluation.trainer.precision),
        "--data.limits": str(settings.data.limits),
    }


def _add_options(options: Options) -> None:
    options.add(
        "exported",
        str | None,
        None,
        "A .pt2, .onnx or .pte that export wrote, in place of a checkpoint; runs on the CPU.",
    )
    options.add(
        "out",
        str | None,
        None,
        "The table to write; default predictions.csv beside the checkpoint or exported model.",
    )
    options.add("resume", bool, False, "Go on with the table of a run that did not end.")


def _output(settings: Namespace, folder: Path) -> Path:
    out = settings.out
    if out and Path(out).is_dir():
        raise FlowersError(
            f"--out: {out!r} is a folder; name a file in it, for example {str(Path(out) / PREDICTIONS)!r}."
        )
    return Path(out).parent if out else folder

"""`predict`: a table of photos with the probability of each class."""

from __future__ import annotations

import logging
from pathlib import Path

from jsonargparse import Namespace

from flowers_pl.cli.checkpoints import exported_model
from flowers_pl.cli.commands import SUMMARIES
from flowers_pl.cli.evaluating import prepare
from flowers_pl.cli.options import Options
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import PREDICTIONS, TEST_JSON
from flowers_pl.core.screen import show
from flowers_pl.core.text import plural
from flowers_pl.evaluation.predictions import prediction_rows, prediction_table, write_predictions
from flowers_pl.runs.exported import predict_exported

log = logging.getLogger(__name__)


def run(args: list[str]) -> None:
    """Write predictions.csv and print its first rows."""
    exported = exported_model(args)
    evaluation = prepare("predict", SUMMARIES["predict"], args, _add_options, exported, _output)
    data, folder = evaluation.data, evaluation.folder
    if exported is not None:
        classes, found = predict_exported(exported, data)
    else:
        model = evaluation.load()
        classes = model.classes
        found = evaluation.predictions(model)
    rows = prediction_rows(found, [photo.path for photo in data.reported_photos], classes)
    out = evaluation.settings.out
    file, failed = Path(out or folder / PREDICTIONS), sum(bool(row.error) for row in rows)
    if out is None and file.exists() and (folder / TEST_JSON).exists():
        log.warning("%s is overwritten; it may be that of 'test' (--out names another file).", file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(file, rows, classes)
    show("\n".join(prediction_table(rows)))
    if failed == len(rows):
        raise FlowersError(
            f"--data.predict_root: nothing in {data.predict_root!r} can be read as a photo; {file} gives the"
            " reasons."
        )
    unread = f", {plural(failed, 'file')} that cannot be read" if failed else ""
    log.info("%s%s: %s.", plural(len(rows) - failed, "prediction"), unread, file)


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


def _output(settings: Namespace, folder: Path) -> Path:
    out = settings.out
    if out and Path(out).is_dir():
        raise FlowersError(
            f"--out: {out!r} is a folder; name a file in it, for example {str(Path(out) / PREDICTIONS)!r}."
        )
    return Path(out).parent if out else folder

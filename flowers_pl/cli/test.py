"""`test`: a full report on a checkpoint, with tables and figures."""

from __future__ import annotations

import logging

from flowers_pl.cli.evaluating import prepare
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import BEST, CARD, SPLIT
from flowers_pl.core.screen import show
from flowers_pl.data.folder import TEST, split_folders
from flowers_pl.runs.final_model import write_card
from flowers_pl.runs.folder import split_of
from flowers_pl.runs.ranks import gather
from flowers_pl.runs.results import write_report

log = logging.getLogger(__name__)


def run(args: list[str]) -> None:
    """Evaluate the photos of --data.test_root, or else the validation side, and write a report."""
    evaluation = prepare("test", args)
    folder, checkpoint = evaluation.folder, evaluation.checkpoint
    assert checkpoint is not None
    model = evaluation.load()
    if model.refit is not None and evaluation.data.find_test_root() is None:
        raise FlowersError(
            f"--data.test_root is missing: {str(checkpoint)!r} is a refit, which has trained on its"
            " validation photos too; give a folder of other photos."
        )
    if evaluation.data.find_test_root() is None and TEST in split_folders(evaluation.data.root).values():
        log.warning(
            "A pack gives no photos to test on, so these are its validation photos; --data.test_root takes"
            " the folder of the others."
        )
    evaluation.metrics(evaluation.trainer.test, model)
    tested = gather(evaluation.trainer, model.tested)
    if not evaluation.trainer.is_global_zero:
        return
    predictions = [prediction for of_rank in tested for prediction in of_rank]
    report = write_report(folder, checkpoint, evaluation.data, model.classes, predictions)
    show(report.text())
    if (folder / CARD).is_file() and checkpoint.name == BEST:
        try:
            write_card(folder, checkpoint, split_of(checkpoint) if (folder / SPLIT).is_file() else [])
        except FlowersError as error:
            log.warning("%s is not renewed: %s", folder / CARD, error)
    log.info("Written to %s: test.txt, test.json, predictions.csv and plots.", folder)

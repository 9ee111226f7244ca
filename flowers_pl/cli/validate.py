"""`validate`: a checkpoint's metrics on the validation side."""

from __future__ import annotations

from flowers_pl.cli.evaluating import PARTLY, is_partly_evaluated, lines, prepare
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.screen import show
from flowers_pl.runs.results import validation_images


def run(args: list[str]) -> None:
    """Evaluate the validation side."""
    evaluation = prepare("validate", args, output=lambda settings, folder: None)
    model = evaluation.load()
    if model.refit is not None:
        raise FlowersError(
            f"{str(evaluation.checkpoint)!r} is a refit, which has trained on its validation photos too; the"
            f" run {model.refit.run!r} was validated, and 'test --data.test_root' judges the refit on other"
            " photos."
        )
    metrics = evaluation.metrics(evaluation.trainer.validate, model)
    if not evaluation.trainer.is_global_zero:
        return
    count = len(evaluation.data.reported_photos)
    show(f"{count} {validation_images(evaluation.data)}; {model.stage.chosen}.")
    if is_partly_evaluated(evaluation.trainer, evaluation.data):
        show(PARTLY)
    show(lines(metrics))

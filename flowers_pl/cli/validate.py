"""`validate`: a checkpoint's metrics on the validation side."""

from __future__ import annotations

from flowers_pl.cli.commands import SUMMARIES
from flowers_pl.cli.evaluating import lines, prepare
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.screen import show
from flowers_pl.runs.results import validation_images


def run(args: list[str]) -> None:
    """Evaluate the validation side."""
    evaluation = prepare("validate", SUMMARIES["validate"], args, output=lambda settings, folder: None)
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
    if sum(evaluation.trainer.num_val_batches) < len(evaluation.data.val_dataloader()):
        show("Only a part of them was evaluated (--trainer.limit_val_batches).")
    show(lines(metrics))

"""Read from a finished run what its refit needs."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import BEST, CONFIG, KEY, METRICS, SPLIT
from flowers_pl.runs.judgement import results_of
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.refit import Refit


def read_refit(run: Path) -> Refit:
    """Read a run's decisions from its best.ckpt and its metrics.csv.

    Raises:
        FlowersError: this is no run, it has nothing to go by, or it is a refit itself.
    """
    if not run.is_dir() or not any((run / name).exists() for name in (CONFIG, BEST, METRICS)):
        raise FlowersError(f"--refit: {str(run)!r} is not the folder of a run; give one below checkpoints/.")
    for name in (BEST, CONFIG, SPLIT):
        if not (run / name).is_file():
            raise FlowersError(
                f"--refit: {str(run)!r} has no {name}, so it does not say what to repeat; give a run that has"
                " ended."
            )
    checkpoint = read_checkpoint(run / BEST)
    ours, epoch = checkpoint[KEY], int(checkpoint["epoch"])
    if (before := Refit.from_state(ours.get("refit_of"))) is not None:
        raise FlowersError(
            f"--refit: {str(run)!r} is a refit itself and has all photos already; give the run that it"
            f" repeats, {before.run!r}."
        )
    if ours.get("unlike") is None:  # which is added when training ends
        raise FlowersError(
            f"--refit: the run {str(run)!r} has not ended, so what it keeps is not known; resume it to its"
            " end first."
        )
    stage = ours["stage"]
    in_head = epoch + 1 if stage["number"] == 1 else _head_epochs(run, stage)
    with (run / BEST).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Refit(
        run.resolve().name,
        digest,
        in_head,
        epoch + 1 - int(stage["first_epoch"]) if stage["number"] == 2 else 0,
        (ours.get("unlike") or {}).get("limit"),
        ours.get("temperature"),
        bool(checkpoint["hyper_parameters"].get("flip_test", False)),
        results_of(run / BEST),
    )


def _head_epochs(run: Path, stage: dict[str, Any]) -> int:
    """Count the epochs of stage 1 up to the one that stage 2 began with: the best one, or the last one."""
    first = int(stage["first_epoch"])
    if not first or not stage.get("chooses", True):
        return first
    rows = read_table(run / METRICS) if (run / METRICS).is_file() else []
    losses = {row["epoch"]: row["val_loss"] for row in rows if "val_loss" in row}
    if not set(range(first)) <= losses.keys():
        raise FlowersError(
            f"--refit: {str(run / METRICS)!r} does not have all epochs of stage 1, so the best of them is not"
            " known; restore it, or give another run."
        )
    return 1 + min(range(first), key=lambda epoch: losses.get(epoch, math.inf))

"""The folder of the run that `fit` begins or resumes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

from flowers_pl.cli.commands import RUN_NAME
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import LAST, RUNS
from flowers_pl.core.paths import check_writable
from flowers_pl.core.signals import end_with_launcher
from flowers_pl.runs.ownership import RunFolder
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.resume import job_name, restarted


def run_folder(
    settings: Namespace, checkpoint: Path | None, repeats: Path | None
) -> tuple[Path, RunFolder | None, Path | None]:
    """Return the run's folder, its owner on the first rank, and the checkpoint to resume from, also where a
    job was started again.

    Args:
        settings: of the command line.
        checkpoint: what the run resumes from, if anything.
        repeats: the folder of the run that this one is a refit of, if any.
    """
    if "LOCAL_RANK" in os.environ and RUN_NAME in os.environ:  # launched by the process that owns the run
        end_with_launcher()
        return checkpoint.parent if checkpoint else RUNS / os.environ[RUN_NAME], None, checkpoint
    first = not getattr(rank_zero_only, "rank", 0) and not settings.trainer.fast_dev_run
    if checkpoint is not None:
        check_writable(checkpoint.parent)
        owned = RunFolder.enter(checkpoint.parent, True, restarted()) if first else None
        return checkpoint.parent, owned, checkpoint
    if first:
        check_writable(RUNS)
    name, owned = settings.run_name or job_name(), None
    if name is not None and (Path(name).name != name or name == ".."):
        raise FlowersError(f"--run_name must be the name of a folder below {RUNS}, not {name!r}.")
    if first:
        now = f"{repeats.resolve().name}-refit" if repeats else time.strftime("%Y%m%d-%H%M%S")
        owned = RunFolder.enter(RUNS / name, False, restarted()) if name else RunFolder.new(RUNS, now)
    folder = owned.path if owned else RUNS / (name or "run")
    os.environ[RUN_NAME] = folder.name
    last = folder / LAST
    if not (restarted() and last.exists()):
        return folder, owned, None
    read_checkpoint(last)
    return folder, owned, last

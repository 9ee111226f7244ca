"""What the command line must know to go on with a run: its settings, what changed, and whether it is over."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from flowers_pl.core.files import replacing
from flowers_pl.core.names import CONFIG, KEY, LAST, LEFT_OUT, SPLIT
from flowers_pl.training.checkpoint_callback import MIDDLE
from flowers_pl.training.checkpoint_files import read_checkpoint

log = logging.getLogger(__name__)
OF_THE_COMMAND = {"config", "ckpt_path", "run_name"}  # no settings of a run


class RunSettings(L.Callback):
    """Writes `config.yaml` once training begins, whole or not at all.

    Lightning's own callback writes it before the checkpoint has been read, so that a resume which is refused
    would leave the run with settings that it was not trained with.

    Args:
        file: where it goes.
        settings: all of them, as YAML.
    """

    def __init__(self, file: Path, settings: str) -> None:
        self.file, self.settings = file, settings

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            with replacing(self.file) as unfinished:
                unfinished.write_text(self.settings, encoding="utf-8")


def log_changes(before: Path, now: str) -> bool:
    """Name each setting that a resumed run does not have from its own config.yaml; whether there is one.

    Args:
        before: the run's config.yaml.
        now: the settings as they are, in YAML.
    """
    if not before.is_file():
        log.warning("%s is missing: settings are the defaults and those of the command line.", before)
        return True
    old, new = (dict(_flat(yaml.safe_load(text))) for text in (before.read_text(), now))
    names = sorted(name for name in old.keys() | new.keys() if name.partition(".")[0] not in OF_THE_COMMAND)
    changed = [name for name in names if old.get(name) != new.get(name)]
    for name in changed:
        log.info("Changed for this resume: --%s from %s to %s.", name, old.get(name), new.get(name))
    return bool(changed)


def _flat(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def finished(ckpt: Path) -> bool:
    """Whether the last stage of a checkpoint's run has ended, by the settings that it was trained with."""
    checkpoint = read_checkpoint(ckpt)
    stage = checkpoint[KEY]["stage"]
    return bool(stage["last"] and stage["ended"]) and MIDDLE not in checkpoint


def epochs_after(ckpt: Path) -> int:
    """How many epochs a run has done since a checkpoint of it was saved: 0 for its last.ckpt."""
    last = ckpt.parent / LAST
    if ckpt.name == LAST or not last.is_file():
        return 0
    before, after = (read_checkpoint(one)["epoch"] for one in (ckpt, last))
    return max(int(after - before), 0)


def remove_unbegun(run: Path) -> None:
    """Remove what a run that was refused before its first step has left; Lightning opens TensorBoard's file
    early."""
    if (run / CONFIG).exists():
        return
    for file in (*run.glob("events.out.tfevents.*"), run / SPLIT, run / LEFT_OUT):
        file.unlink(missing_ok=True)
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()


def how_to_resume(run: Path) -> str:
    """The command that takes up a run that was stopped."""
    if not (run / LAST).is_file():
        return "nothing was saved yet; start it again as before"
    command = f"python -m flowers_pl fit --ckpt_path {run / LAST}"
    if "TORCHELASTIC_RUN_ID" in os.environ or SLURMEnvironment.detect():
        return f"go on with --ckpt_path {run / LAST} in the command that started it"
    return f"go on with: {command}"


def job_name() -> str | None:
    """A name for the run of a SLURM job, the same on all its machines and after each requeue."""
    return f"slurm-{SLURMEnvironment.job_id()}" if SLURMEnvironment.detect() else None


def restarted() -> bool:
    """Whether SLURM (after a requeue) or torchrun (`--max-restarts`) starts the same command again."""
    return any(
        int(os.environ.get(name, 0)) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    )

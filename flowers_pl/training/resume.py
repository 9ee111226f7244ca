"""Find out what resuming a run needs: its settings, what has changed, and whether it has finished."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import CONFIG, KEY, LAST, LEFT_OUT, SPLIT
from flowers_pl.core.paths import expanded
from flowers_pl.training.checkpoint_callback import MIDDLE
from flowers_pl.training.checkpoint_files import read_checkpoint

log = logging.getLogger(__name__)
SECTIONS = ("model", "data", "unfreeze", "early_stopping", "average", "trainer")  # of every config.yaml
COMMAND_ONLY = {"config", "ckpt_path", "run_name", "refit"}  # options that are not settings of a run


def read_settings(file: Path) -> dict[str, Any]:
    """Read the config.yaml of a run; a run without one has no settings.

    Raises:
        FlowersError: it cannot be read, or is damaged.
    """
    if not file.exists():
        return {}
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), dict) for name in SECTIONS):
        raise FlowersError(
            f"{str(file)!r} cannot be read or is damaged; restore it, or move it away and give the settings"
            " on the command line."
        )
    return settings


class Change(NamedTuple):
    """A setting that differs from the run's.

    Args:
        name: of the option, without the dashes.
        old: its value in the run's config.yaml.
        new: its present value.
    """

    name: str
    old: Any
    new: Any


def changes(file: Path, settings: str, defaults: str) -> list[Change]:
    """List the settings of a run that differ from its config.yaml, by name.

    Args:
        file: the run's config.yaml.
        settings: the present settings, in YAML.
        defaults: of settings that its version did not have: all settings without the command line, in YAML.
    """
    old, new = dict(_flat(yaml.safe_load(defaults))), dict(_flat(yaml.safe_load(settings)))
    old |= _flat(read_settings(file))
    names = sorted(name for name in old.keys() | new.keys() if name.partition(".")[0] not in COMMAND_ONLY)
    return [
        Change(name, old.get(name), new.get(name))
        for name in names
        if not _same(old.get(name), new.get(name))
    ]


def log_changes(file: Path, settings: str, defaults: str, purpose: str = "resume") -> bool:
    """Log each setting of a resumed run that differs from its config.yaml, and return whether one does.

    Args:
        file, settings, defaults: see `changes`.
        purpose: what they are changed for.
    """
    if not file.is_file():
        log.warning("%s is missing: settings are the defaults and those of the command line.", file)
        return True
    found = changes(file, settings, defaults)
    for change in found:
        log.info("Changed for this %s: --%s from %s to %s.", purpose, *change)
    return bool(found)


def _same(old: Any, new: Any) -> bool:
    """Whether two settings are the same; a path of version 0.1.0 may be relative."""
    paths = isinstance(old, str) and isinstance(new, str) and os.path.isabs(new)
    return bool(old == new or (paths and expanded(old) == new))


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def finished(ckpt: Path) -> bool:
    """Return whether the last stage of a checkpoint's run had ended, by the settings of that time."""
    checkpoint = read_checkpoint(ckpt)
    stage = checkpoint[KEY]["stage"]
    return bool(stage["last"] and stage["ended"]) and MIDDLE not in checkpoint


def epochs_after(ckpt: Path) -> int:
    """Count the epochs that a run has trained since it saved a checkpoint: 0 for its last.ckpt."""
    last = ckpt.parent / LAST
    if ckpt.name == LAST or not last.is_file():
        return 0
    first, second = (read_checkpoint(file)["epoch"] for file in (ckpt, last))
    return max(int(second - first), 0)


def remove_unbegun(run: Path) -> None:
    """Remove the files of a run that ended before its first step: Lightning opens TensorBoard's early."""
    if (run / CONFIG).exists():
        return
    for file in (*run.glob("events.out.tfevents.*"), run / "hparams.yaml", run / SPLIT, run / LEFT_OUT):
        file.unlink(missing_ok=True)
    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()


def how_to_resume(run: Path) -> str:
    """Return advice on how to resume a run that was stopped."""
    if not (run / LAST).is_file():
        return "nothing was saved yet; start it again with the same command"
    if "TORCHELASTIC_RUN_ID" in os.environ or SLURMEnvironment.detect():
        return f"resume by adding --ckpt_path {run / LAST} to the command that started it"
    return f"resume with: python -m flowers_pl fit --ckpt_path {run / LAST}"


def job_name() -> str | None:
    """Return a run name for a SLURM job, the same on all its machines and after each requeue."""
    return f"slurm-{SLURMEnvironment.job_id()}" if SLURMEnvironment.detect() else None


def restarted() -> bool:
    """Return whether SLURM (after a requeue) or torchrun (`--max-restarts`) has restarted this command."""
    return any(
        int(os.environ.get(name, 0)) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    )

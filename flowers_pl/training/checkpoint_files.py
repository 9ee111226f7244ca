"""Write checkpoints whole or not at all, and read them without executing anything."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replace_by_copy, replacing
from flowers_pl.core.names import BEST, KEY
from flowers_pl.network.weights import read_tensors

# What every checkpoint has, and what it has under this project's key.
ENTRIES = {KEY: dict, "state_dict": dict, "hyper_parameters": dict, "epoch": int, "global_step": int}
OWN_ENTRIES = {"classes": list, "image_size": int, "mean": list, "std": list, "stage": dict, "data": dict}
STAGE_ENTRIES = {"number": int, "first_epoch": int, "last": bool, "ended": bool}
SETTINGS = dict.fromkeys(("weights", "dropout", "head_lr", "top_lr", "seed"), object)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of this project; nothing in it is executed (`weights_only=True`).

    Raises:
        FlowersError: there is no such file, it is damaged, would run code, or is not a checkpoint of this
            project.
    """
    path = Path(path)
    if path.is_dir():
        raise FlowersError(f"--ckpt_path: {str(path)!r} is a folder; give its best.ckpt or last.ckpt.")
    if not path.is_file():
        raise FlowersError(
            f"--ckpt_path: there is no checkpoint {str(path)!r}; give the path of a best.ckpt or last.ckpt."
        )
    if path.suffix in (".onnx", ".pt2", ".pte"):
        raise FlowersError(
            f"--ckpt_path: {str(path)!r} is an exported model, not a checkpoint; give it to 'predict' as"
            " --exported."
        )
    try:
        checkpoint = read_tensors(path)
    except pickle.UnpicklingError as error:
        raise FlowersError(
            f"--ckpt_path: {str(path)!r} is refused: it holds more than tensors and plain values, and loading"
            " that could run code; give a checkpoint that flowers_pl wrote."
        ) from error
    except ValueError as error:
        raise FlowersError(
            f"--ckpt_path: {str(path)!r} is not a checkpoint: {error}; give one that flowers_pl wrote."
        ) from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise FlowersError(
            f"--ckpt_path: {str(path)!r} is not a checkpoint of flowers_pl; give a best.ckpt or last.ckpt"
            " from its runs."
        )
    if fault := _fault(checkpoint, ENTRIES) or _fault_inside(checkpoint):
        raise unusable(path, fault)
    return checkpoint


def unusable(path: str | os.PathLike[str], reason: object) -> FlowersError:
    """Return the error for a checkpoint of this project whose content is wrong."""
    fault = " ".join(str(reason).split())
    fault = fault if len(fault) <= 200 else f"{fault[:200]} ..."
    return FlowersError(
        f"--ckpt_path: {str(path)!r} was changed, or written by another version of flowers_pl ({fault}); use"
        " the version that wrote it, or another checkpoint."
    )


def _fault(entries: dict[str, Any], expected: Mapping[str, type], prefix: str = "") -> str:
    """Name the first entry that is missing or of another type; empty if there is none."""
    for name, kind in expected.items():
        if name not in entries:
            return f"{prefix}{name} is missing"
        if not isinstance(entries[name], kind):
            return f"{prefix}{name} is a {type(entries[name]).__name__}, not a {kind.__name__}"
    return ""


def _fault_inside(checkpoint: dict[str, Any]) -> str:
    """Name the first entry of this project's part that cannot be used; empty if there is none."""
    own = checkpoint[KEY]
    if fault := _fault(own, OWN_ENTRIES, f"{KEY}."):
        return fault
    if own["image_size"] < 1:
        return f"image_size is {own['image_size']}"
    if not all(isinstance(name, str) for name in own["classes"]):
        return f"{KEY}.classes are not all texts"
    return (
        _fault(own["stage"], STAGE_ENTRIES, f"{KEY}.stage.")
        or _fault(own["data"], {"root": str}, f"{KEY}.data.")
        or _fault(checkpoint["hyper_parameters"], SETTINGS, "hyper_parameters.")
    )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside it, syncs that to disk, and renames it.

    Lightning (2.6) writes a temporary file elsewhere and moves it, which is a plain copy across file systems.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     AtomicCheckpointIO().save_checkpoint({"step": 3}, f"{folder}/last.ckpt")
    ...     torch.load(f"{folder}/last.ckpt")
    {'step': 3}
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save so that at every moment either the old or the new file is there, whole.

        Raises:
            FlowersError: it cannot be written; the old file is as it was.
        """
        path = Path(path)
        try:
            with replacing(path) as unfinished:
                torch.save(checkpoint, unfinished)
        except (OSError, RuntimeError) as error:
            raise _write_error(path, error) from error


def copy_checkpoint(path: Path, to: Path) -> None:
    """Replace the checkpoint `to` by `path`; at every moment either the old or the new one is there, whole.

    Raises:
        FlowersError: it cannot be written; the old file is as it was.
    """
    try:
        replace_by_copy(path, to)
    except OSError as error:
        raise _write_error(to, error) from error


def _write_error(path: Path, error: Exception) -> FlowersError:
    return FlowersError(
        f"The checkpoint {str(path)!r} cannot be written ({error}); free some space and resume from the last"
        " one."
    )


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of a process that was killed from a run's folder, and Lightning's own copies.

    Lightning (2.6) writes a copy of `last.ckpt` when SLURM preempts it, and would then load that instead of
    the model that it is given to evaluate.
    """
    for pattern in (".best*.ckpt*", ".last*.ckpt*", ".config-*.yaml", ".metrics-*.csv", "hpc_ckpt_*.ckpt"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def add_to_checkpoint(path: Path, part: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
    """Rewrite a checkpoint, whole or not at all, with entries added to this project's part of it, and
    `settings` to its hyper-parameters."""
    checkpoint = read_checkpoint(path)
    checkpoint[KEY] |= part
    checkpoint["hyper_parameters"] |= settings or {}
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def newest_best(folder: str | os.PathLike[str] = "checkpoints") -> Path:
    """Return the newest `best.ckpt` of the runs in `folder`.

    Raises:
        FlowersError: there is none.
    """
    checkpoints = sorted(Path(folder).glob(f"*/{BEST}"), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        raise FlowersError(
            f"There is no {BEST} below {str(folder)!r}; train one with 'python -m flowers_pl fit', or give"
            " --ckpt_path."
        )
    return checkpoints[-1]

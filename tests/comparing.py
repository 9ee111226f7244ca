"""What it means that two runs are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flowers_pl.core.names import METRICS
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.weight_average import AVERAGE


def assert_same_runs(one: Path, other: Path, *, ignore: Sequence[str] = ()) -> None:
    """Two runs' checkpoints hold the same weights, optimizer, stage, patience and progress, bit for bit.

    Their tables are the same too, and nothing unfinished lies in the second one's folder. `ignore` names
    what may differ.
    """
    for name in ("best.ckpt", "last.ckpt"):
        first, second = (read_checkpoint(run / name) for run in (one, other))
        for part in (
            "epoch",
            "global_step",
            "state_dict",
            "optimizer_states",
            "callbacks",
            "flowers_pl",
            AVERAGE,
        ):
            differing = [
                one
                for one in differences(first.get(part), second.get(part), part)
                if not one.startswith(tuple(ignore))
            ]
            assert not differing, (name, differing[:5])
    tables = [read_table(run / "metrics.csv") for run in (one, other)]
    for row in (row for table in tables for row in table):
        row.pop("images_per_second", None)  # a time
    differing = differences(tables[0], tables[1], METRICS)
    assert not differing, differing
    assert not [file for file in other.iterdir() if file.name.startswith(".")]


def differences(one: Any, other: Any, where: str) -> list[str]:
    """Where two nested values differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for key in one.keys() | other.keys()
            for found in differences(one.get(key), other.get(key), f"{where}.{key}")
        ]
    if isinstance(one, list) and len(one) == len(other):
        return [
            found
            for at, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{where}.{at}")
        ]
    return [] if one == other else [f"{where}: {one}, {other}"]

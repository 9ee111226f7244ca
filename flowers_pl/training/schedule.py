"""How the learning rates move over the steps of a stage, and which changes a resumed run must refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from flowers_pl.core.errors import FlowersError

Schedule = Literal["constant", "cosine"]


def rate_factor(step: int, steps: int, warmup: float = 0.0, schedule: Schedule = "constant") -> float:
    """Return what the learning rates are multiplied by in a step of a stage.

    During the warm-up the factor rises linearly to 1. A cosine then falls from 1 and reaches zero after the
    last step, as torch's `CosineAnnealingLR` does (Loshchilov and Hutter 2017, without restarts).

    Args:
        step: steps of the stage before this one.
        steps: steps that the whole stage has.
        warmup: share of the steps that warm up.
        schedule: what follows the warm-up.

    >>> [round(rate_factor(step, 8, 0.25, "cosine"), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    >>> rate_factor(5, 8)
    1.0
    """
    warming = int(warmup * steps)
    if step < warming:
        return (step + 1) / warming
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * min((step - warming) / (steps - warming), 1))) / 2


def chooses_epoch(schedule: Schedule) -> bool:
    """Return whether the validation loss chooses the epoch that is kept.

    A schedule that ends at zero is meant to be run to its end: its last epoch is kept.
    """
    return schedule != "cosine"


def follows_length(settings: Mapping[str, Any]) -> bool:
    """Return whether the rates of a model with these settings depend on the length of a stage."""
    return settings.get("schedule", "constant") != "constant" or settings.get("warmup", 0) > 0


def refuse_another_schedule(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a schedule over another length, or of another kind.

    The learning rates would jump, and the weak last epochs would no longer be the last.

    Args:
        before: by option, what the schedule was made with.
        now: by option, what the resumed run is given.

    Raises:
        FlowersError: one of them differs.
    """
    for option, value in now.items():
        if value != before[option]:
            raise FlowersError(
                f"--{option}: this run follows a schedule over the length of its stage, which began with"
                f" {before[option]}, not {value}; resume it with {before[option]}, or start a new run."
            )

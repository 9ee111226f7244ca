"""The optimizer of each stage: which weights it moves, at which rates, and which of them decay."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flowers_pl.core.errors import FlowersError
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.training.stage import Stage

DEPTH = 3  # blocks that share a learning rate
PLAIN = "_plain"  # ends the names of groups without weight decay


@dataclass(frozen=True)
class Rates:
    """The learning rates of both stages, before the schedule, and the weight decay.

    Args:
        head: of the head in stage 1.
        top: of the backbone's last blocks in stage 2.
        top_head: of the head in stage 2; None for `top`.
        layer_decay: the rate of every three blocks is this times that of the three above them.
        weight_decay: of matrices and convolution kernels; 0 for none.

    Raises:
        FlowersError: one of them is out of range.

    >>> rates = Rates(layer_decay=0.5)
    >>> [rates.of_block(block) for block in (18, 16, 15, 12)]
    [0.0001, 0.0001, 5e-05, 2.5e-05]
    """

    head: float = 1e-3
    top: float = 1e-4
    top_head: float | None = None
    layer_decay: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in (("head_lr", self.head), ("top_lr", self.top), ("top_head_lr", self.top_head)):
            if rate is not None and not 0 < rate < math.inf:
                raise FlowersError(f"--model.{name} must be a number greater than 0, not {rate}.")
        if not 0 < self.layer_decay <= 1:
            raise FlowersError(
                f"--model.layer_decay must be greater than 0 and at most 1, not {self.layer_decay}."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise FlowersError(f"--model.weight_decay must be 0 or more, not {self.weight_decay}.")

    def of_head(self, stage: Stage) -> float:
        """Return the head's rate in a stage."""
        if stage.number == 1:
            return self.head
        return self.top if self.top_head is None else self.top_head

    def of_block(self, index: int) -> float:
        """Return the rate of a block of the backbone, 0 to 18, in stage 2."""
        return self.top * self.layer_decay ** ((18 - index) // DEPTH)


def parameter_groups(network: FlowerNet, stage: Stage, rates: Rates) -> list[dict[str, Any]]:
    """List the weights that require gradients in groups of one learning rate and one weight decay each.

    The groups are the head and the top or, with a layer decay, the head and the blocks by depth. With weight
    decay, biases and the gains and shifts of batch norms are groups of their own, which do not decay.

    Args:
        network: frozen and unfrozen as the stage says.
        stage: that the groups are for.
        rates: the settings.

    Returns:
        Dicts with `name`, `params`, `lr` and `weight_decay`, for an optimizer of torch.

    >>> network = FlowerNet(5)
    >>> network.train_top_layers(30)
    >>> [group["name"] for group in parameter_groups(network, Stage(2, 30), Rates(layer_decay=0.5))]
    ['head', 'blocks_16_18', 'blocks_13_15']
    """
    groups: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
    rate_of: dict[str, float] = {}
    backbone = list(enumerate(network.backbone))
    parts = [("head", rates.of_head(stage), network.head)]
    if rates.layer_decay == 1:
        parts += [("top", rates.top, block) for _, block in backbone]
    else:
        parts += [(_depth(index), rates.of_block(index), block) for index, block in reversed(backbone)]
    for name, rate, part in parts:
        for weight in part.parameters():
            if weight.requires_grad:
                own = name if weight.ndim > 1 or not rates.weight_decay else name + PLAIN
                groups[own].append(weight)
                rate_of[own] = rate
    return [
        {
            "name": name,
            "params": weights,
            "lr": rate_of[name],
            "weight_decay": 0.0 if name.endswith(PLAIN) else rates.weight_decay,
        }
        for name, weights in groups.items()
    ]


def _depth(index: int) -> str:
    """Name the blocks that share a block's rate.

    >>> _depth(18), _depth(4), _depth(0)
    ('blocks_16_18', 'blocks_04_06', 'blocks_00')
    """
    last = 18 - (18 - index) // DEPTH * DEPTH
    return f"blocks_{last - DEPTH + 1:02}_{last:02}" if last else "blocks_00"


def make_optimizer(groups: list[dict[str, Any]], clips: bool) -> torch.optim.Optimizer:
    """Return Adam for groups of weights or, where some of them decay, AdamW.

    Args:
        groups: as `parameter_groups` lists them.
        clips: whether the Trainer clips gradients, which Lightning refuses with the fused Adam.
    """
    kind = torch.optim.AdamW if any(group["weight_decay"] for group in groups) else torch.optim.Adam
    return kind(
        [dict(group) for group in groups],  # torch keeps and changes what it is given
        fused=None if clips else True,  # False would also rule out its kernels for many tensors at once
    )


def set_rates(optimizer: torch.optim.Optimizer, planned: list[dict[str, Any]], factor: float) -> None:
    """Set the rates of a step: a resumed optimizer has those of its checkpoint.

    Args:
        optimizer: what `make_optimizer` made of `planned`.
        planned: as `parameter_groups` lists them.
        factor: of the schedule.
    """
    for group, plan in zip(optimizer.param_groups, planned, strict=True):
        group["lr"], group["weight_decay"] = plan["lr"] * factor, plan["weight_decay"]


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the present learning rates by name, one for the head and one for each depth."""
    return {group["name"].removesuffix(PLAIN): group["lr"] for group in optimizer.param_groups}


def refuse_other_groups(saved: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    """Refuse to resume with an optimizer of other groups than its saved state has.

    Args:
        saved: the optimizer's state in the checkpoint.
        groups: those of the resumed run.

    Raises:
        FlowersError: the groups differ.
    """
    if [group.get("name") for group in saved["param_groups"]] != [group["name"] for group in groups]:
        raise FlowersError(
            "--model.layer_decay, --model.weight_decay: whether rates differ by depth, and whether weights"
            " decay, cannot change inside a run; resume it with what it began with, or start a new run."
        )

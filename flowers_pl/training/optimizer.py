"""The optimizer of each stage: which weights it moves, and its learning rate."""

from __future__ import annotations

import torch

from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.training.stage import Stage


def learning_rate(stage: Stage, head_lr: float, top_lr: float) -> float:
    """Return Adam's learning rate in a stage: one for the head alone, one for the head and the top layers.

    >>> learning_rate(Stage(1), 1e-3, 1e-4), learning_rate(Stage(2, 30), 1e-3, 1e-4)
    (0.001, 0.0001)
    """
    return head_lr if stage.number == 1 else top_lr


def make_optimizer(network: FlowerNet, rate: float, clips: bool) -> torch.optim.Optimizer:
    """Return Adam for the weights that require gradients; head and top layers are groups of their own.

    Args:
        network: frozen and unfrozen as the stage says.
        rate: the learning rate.
        clips: whether the Trainer clips gradients, which Lightning refuses with the fused Adam.
    """
    parts = {"head": network.head, "top": network.backbone}
    groups = [
        {"name": name, "params": [weight for weight in part.parameters() if weight.requires_grad]}
        for name, part in parts.items()
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], rate, fused=not clips)

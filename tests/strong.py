"""The strong recipe's parts, all on, in a run of two short stages."""

from __future__ import annotations

from typing import Any

ALL_ON: dict[str, dict[str, Any]] = {
    "model": {
        "weights": None,
        "label_smoothing": 0.1,
        "top_head_lr": 3e-4,
        "layer_decay": 0.75,
        "weight_decay": 0.02,
        "warmup": 0.3,
        "schedule": "cosine",
    },
    "unfreeze": {"layers": 127, "head_epochs": 2, "top_epochs": 2},
    "average": {"decay": 0.997},
    "trainer": {"gradient_clip_val": 0.5},
}

"""A callback that watches ranks, and kills one; `--trainer.callbacks` takes it with tests/ on the path."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch

FIRST_STEPS = (1, 2, 3, 11, 12, 13)  # of each stage, with two epochs of five batches a stage


class Probe(L.Callback):
    """Notes each rank's weights in the working folder, and sends a rank a signal.

    The variable PROBE_SIGNAL says "rank:step:signal"; a run that torchrun starts again gets none.
    """

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.obey(trainer, trainer.global_step)

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self.obey(trainer, batch_idx)

    def obey(self, trainer: L.Trainer, now: int) -> None:
        given = os.environ.get("PROBE_SIGNAL")
        if given and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            rank, step, number = map(int, given.split(":"))
            if (rank, step) == (trainer.global_rank, now):
                os.kill(os.getpid(), number)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step in FIRST_STEPS and trainer.is_global_zero:
            torch.save(pl_module.state_dict(), f"step-{trainer.global_step}.pt")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = hashlib.sha256()
        for name, value in pl_module.state_dict().items():
            weights.update(name.encode() + value.numpy().tobytes())
        with Path(f"hashes-{trainer.global_rank}.txt").open("a") as stream:
            stream.write(f"{trainer.current_epoch} {weights.hexdigest()}\n")

"""What the ranks of a run tell each other: whether they see the same, and what each has found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device

from flowers_pl.core.errors import FlowersError


def same_on_all_ranks(trainer: L.Trainer, text: str) -> bool:
    """Return whether all ranks have the same text as rank 0; all of them must call this."""
    return trainer.strategy.reduce_boolean_decision(trainer.strategy.broadcast(text) == text)


Found = TypeVar("Found")


def gather(trainer: L.Trainer, found: Found) -> list[Found]:
    """Return what each rank has found, in the order of the ranks, on rank 0; nothing on the others.

    Args:
        trainer: of the run.
        found: whatever can be pickled; its tensors come back on the CPU. All ranks must call this.
    """
    found = move_data_to_device(found, torch.device("cpu"))
    if trainer.world_size == 1:
        return [found]
    everything: list[Found | None] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    dist.gather_object(found, everything)
    return everything or []  # type: ignore[return-value]


def digest_of(texts: Iterable[str]) -> str:
    """Return a hash of a list of texts, such as paths."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


class SamePhotos(L.Callback):
    """Checks that all ranks have listed the same photos: each does so for itself, and they may change."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it; its annotations do not know
        if trainer.world_size > 1 and not same_on_all_ranks(trainer, digest_of(data.file_paths)):
            raise FlowersError(
                "--data.predict_root or --data.test_root: the processes of this run see different"
                " photos there; copy the folder from one machine to the others, or start again if it was"
                " changing."
            )

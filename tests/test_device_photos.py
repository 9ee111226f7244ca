"""device_photos.py: photos that lie on the device are the same photos, and lie there only if they fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flowers_pl.data import device_photos, preparation
from flowers_pl.data.batches import Batch, CachedPhotos
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.device_photos import DevicePhotos, has_room
from flowers_pl.data.sampling import BatchKey, BatchSampler
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.stage_callbacks import UnfreezeTopLayers

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_batches_are_those_of_the_cache(data: FlowersDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_photos, "CHUNK", 7)  # several, the last one short
    cached = data.train_photos
    kept = DevicePhotos(cached, CPU)
    assert len(kept) == len(cached) == 40
    for key in BatchSampler(len(cached), 16, seed=3):
        one, other = cached[key], kept[key]
        for name in Batch._fields:
            expected, found = getattr(one, name), getattr(other, name)
            same = torch.equal(expected, found) if isinstance(expected, Tensor) else expected == found
            assert same, name


def test_only_a_gpu_with_room_keeps_them(data: FlowersDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = data.train_photos
    needed = 2 * len(photos) * 32 * 32 * 3  # twice: half of what is free is for training
    free = [needed]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 10**12))
    assert has_room(GPU, photos)
    free[0] = needed - 1
    assert not has_room(GPU, photos)
    free[0] = needed
    assert not has_room(CPU, photos)
    photos.pixels = np.zeros((40, 32, 32, 3), np.uint8)  # type: ignore[assignment]  # of no cache
    assert not has_room(GPU, photos)


def test_photos_are_taken_on_the_device() -> None:
    """On a pretended GPU, where an index of another device would raise."""
    decoded: Any = SimpleNamespace(pixels=np.zeros((6, 8, 8, 3), np.uint8), hold=None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        kept = DevicePhotos(CachedPhotos(decoded, np.arange(6), np.zeros(6, np.int64)), GPU)
        batch = kept[BatchKey(epoch=0, rows=np.array([4, 1]), total=2, slots=np.array([4, 1]))]
        assert (batch.photos.device.type, batch.photos.dtype) == ("cuda", torch.uint8)
        assert batch.photos.shape == (2, 3, 8, 8)


def test_a_run_with_them_is_the_run_without(data: FlowersDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both train as on a device: what is augmented is augmented there, by torch."""
    monkeypatch.setattr(preparation.Preparation, "on_cpu", lambda self: False)
    made: list[int] = []

    class Counted(DevicePhotos):
        def __getitem__(self, key: BatchKey) -> Batch:
            made.append(len(key.rows))
            return super().__getitem__(key)

    monkeypatch.setattr(preparation, "DevicePhotos", Counted)

    def weights(kept: bool) -> dict[str, Tensor]:
        monkeypatch.setattr(preparation, "has_room", lambda device, photos: kept)
        model = FlowerClassifier(weights=None)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, max_epochs=-1,
            callbacks=[UnfreezeTopLayers(30, head_epochs=1, top_epochs=1)],
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
        return {name: value.clone() for name, value in model.network.state_dict().items()}

    without = weights(kept=False)
    assert not made
    with_them = weights(kept=True)
    assert sum(made) == 2 * 40
    assert all(torch.equal(without[name], with_them[name]) for name in without)

"""prefetch.py and feature_cache.py: prefetched batches are those that would be made one after the other."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_pl.data.batches import Batch
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.feature_cache import FeatureCache
from flowers_pl.data.prefetch import PREFETCHED, PrefetchLoader, ThreadPlan
from flowers_pl.data.sampling import BatchSampler
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.mobilenet import FlowerNet


def loader(data: FlowersDataModule, plan: ThreadPlan, prepare: object = None) -> PrefetchLoader:
    sampler = BatchSampler(len(data.train_photos), 8, seed=3)
    return PrefetchLoader(sampler, data.train_photos, prepare or (lambda batch: batch), lambda: plan)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", [ThreadPlan(1, 1, 8), ThreadPlan(3, 1, 3), ThreadPlan(2, 1, 100)])
def test_what_a_batch_holds_does_not_depend_on_who_makes_it(
    data: FlowersDataModule, plan: ThreadPlan
) -> None:
    expected, found = list(loader(data, ThreadPlan(0, 1, 8))), list(loader(data, plan))
    assert len(found) == len(expected) == len(loader(data, plan)) > 2
    for one, other in zip(found, expected, strict=True):
        for name in ("photos", "labels", "rows", "draws", "keys"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.total == other.total


def test_only_a_few_batches_are_under_way(data: FlowersDataModule) -> None:
    made: list[int] = []

    def note(batch: Batch) -> Batch:
        made.append(len(batch.rows))
        return batch

    batches = iter(loader(data, ThreadPlan(2, 1, 8), note))
    next(batches)
    time.sleep(0.1)
    assert len(made) <= PREFETCHED + 1
    batches.close()  # type: ignore[attr-defined]


def test_threads_compute_alone_and_leave_all_as_it_was(data: FlowersDataModule) -> None:
    torch.set_num_threads(2)
    turn, counts = sys.getswitchinterval(), []

    def note(batch: Batch) -> Batch:
        counts.append(torch.get_num_threads())
        return batch

    batches = iter(loader(data, ThreadPlan(2, 1, 4), note))
    next(batches)
    assert torch.get_num_threads() == 1
    list(batches)
    assert set(counts) == {1}
    assert torch.get_num_threads() == 2
    assert sys.getswitchinterval() == turn
    assert not [one for one in threading.enumerate() if one.name.startswith("prefetch")]


def test_what_goes_wrong_on_a_thread_is_raised(data: FlowersDataModule) -> None:
    def fail(batch: Batch) -> Batch:
        raise ValueError("no such photo")

    with pytest.raises(ValueError, match="no such photo"):
        list(loader(data, ThreadPlan(2, 1, 8), fail))
    assert not [one for one in threading.enumerate() if one.name.startswith("prefetch")]


def test_features_are_cached_until_the_frozen_part_is_another(
    data: FlowersDataModule, tmp_path: Path
) -> None:
    net = FlowerNet(5)
    parts = {layers: FrozenPart(net, torch.bfloat16, 32, whole=not layers) for layers in (0, 30)}
    net.train_top_layers(30)
    parts[30] = FrozenPart(net, torch.bfloat16, 32)
    for layers, shape in ((0, (1280,)), (30, (160, 1, 1))):
        cached = FeatureCache(data.val_photos, lambda part=parts[layers]: part, tmp_path)  # type: ignore[misc]
        (key,) = BatchSampler(len(cached), 100)
        cached.begin()
        batch = cached[key]
        assert batch.features is None
        assert len(batch.photos) == len(cached)
        features = parts[layers](batch.photos)
        cached.put(batch.rows[:0], features[:0])  # the share of a rank without a photo
        for rows in torch.arange(len(cached)).split(3):
            assert not cached.complete()
            cached.put(rows, features[rows])
        assert cached.complete()
        again = cached[key]
        assert again.features is not None
        assert again.features.shape == (len(cached), *shape)
        assert torch.equal(again.features, features)
        assert len(again.photos) == 0
        assert torch.equal(again.labels, batch.labels)
        cached.frozen = lambda: None
        assert not cached.complete()
        assert len(cached[key].photos) == len(cached)
    assert not list(tmp_path.iterdir())  # the file has no name
    assert np.isfinite(features.float().numpy()).all()


def test_without_room_features_are_computed_each_time(
    data: FlowersDataModule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    part = FrozenPart(FlowerNet(5), torch.float32, 32, whole=True)
    cached = FeatureCache(data.val_photos, lambda: part)
    (key,) = BatchSampler(len(cached), 100)
    assert not cached.begin()
    batch = cached[key]
    for _ in range(2):
        cached.put(batch.rows, part(batch.photos))
    assert not cached.begin()
    assert cached[key].features is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text

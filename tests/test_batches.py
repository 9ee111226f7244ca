"""batches.py and datamodule.py: which photos stand where, whoever makes the batch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import load_photo
from flowers_pl.data.folder import VAL
from flowers_pl.data.sampling import BatchKey, BatchSampler, even_sample


def test_every_photo_once_an_epoch_and_a_short_last_batch() -> None:
    keys = list(BatchSampler(21, 8, seed=0))
    assert [len(key.rows) for key in keys] == [8, 8, 5]
    assert [key.total for key in keys] == [8, 8, 5]
    assert sorted(np.concatenate([key.rows for key in keys]).tolist()) == list(range(21))
    assert len(BatchSampler(21, 8)) == 3


def test_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int | None, epoch: int) -> list[int]:
        keys = BatchSampler(30, 8, seed=seed, position=lambda: (epoch, 0))
        return [row for key in keys for row in key.rows.tolist()]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed, epoch in itertools.product((0, 1), (0, 1))}) == 4
    assert order(None, 3) == list(range(30))


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_see_together_what_one_sees(ranks: int) -> None:
    alone = list(BatchSampler(21, 8, seed=5))
    shared = [list(BatchSampler(21, 8, rank, ranks, seed=5)) for rank in range(ranks)]
    for batch, parts in zip(alone, zip(*shared, strict=True), strict=True):
        assert sorted(row for part in parts for row in part.rows) == sorted(batch.rows)
        assert {part.total for part in parts} == {batch.total}


def test_an_epoch_can_start_in_its_middle() -> None:
    whole = list(BatchSampler(21, 8, seed=5, position=lambda: (2, 0)))
    rest = list(BatchSampler(21, 8, seed=5, position=lambda: (2, 1)))
    assert [key.rows.tolist() for key in rest] == [key.rows.tolist() for key in whole[1:]]


def test_batches_hold_the_photos_of_their_files(data: FlowersDataModule) -> None:
    validating = [one for one in data.placed if one.side == VAL]
    batches = list(data.val_dataloader())
    photos, labels = (
        torch.cat([batch.photos for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )
    assert len(photos) == len(validating) == 10
    for photo, label, one in zip(photos, labels, validating, strict=True):
        assert torch.equal(photo, load_photo(data.root / one.path, 32))
        assert data.classes[label] == one.label
    assert all(batch.draws is None and batch.keys is None for batch in batches)  # nothing is augmented


def test_training_batches_are_the_same_with_any_number_of_workers(data: FlowersDataModule) -> None:
    def batches(workers: int) -> list[Batch]:
        data.workers = workers
        return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]

    for one, other in zip(batches(0), batches(4), strict=True):
        for name in ("photos", "labels", "rows", "keys", "draws"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_training_photos_are_augmented_anew_each_epoch(data: FlowersDataModule) -> None:
    def epoch(number: int) -> torch.Tensor:
        sampler = BatchSampler(len(data.train_photos), 40, seed=data.seed, position=lambda: (number, 0))
        (key,) = sampler
        batch = data.on_after_batch_transfer(data.train_photos[key], 0)
        return batch.photos[batch.rows.argsort()]

    first, again, second = epoch(0), epoch(0), epoch(1)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    differ = (first - second).abs().mean((1, 2, 3))
    assert differ.min() > 1  # each photo changed


def test_the_training_seed_does_not_move_the_split(drawings: Path) -> None:
    def placed(seed: int, split_seed: int) -> list[object]:
        module = FlowersDataModule(
            root=str(drawings), image_size=32, seed=seed, split_seed=split_seed, workers=0
        )
        module.setup("fit")
        return [*module.placed]

    assert placed(0, 0) == placed(1, 0)
    assert placed(0, 0) != placed(0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, "--data.image_size"),
        ({"batch_size": 0}, "--data.batch_size"),
        ({"val_fraction": 1.0}, "--data.val_fraction"),
        ({"drawn": -1}, "--data.drawn"),
    ],
)
def test_impossible_settings_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(FlowersError, match=message):
        FlowersDataModule(**options)  # type: ignore[arg-type]


def test_drawings_are_drawn_where_none_are(tmp_path: Path) -> None:
    module = FlowersDataModule(root=str(tmp_path / "drawn"), image_size=32, drawn=4, drawn_size=40, workers=0)
    module.prepare_data()
    module.setup("fit")
    assert module.classes == ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert len(module.train_photos) == 15
    assert len(module.val_photos) == 5


# ---------------------------------------------------------------- classes of unequal size

LABELS = np.repeat([0, 1, 2], [3, 20, 8])  # 31 photos: shares of 10, 10 and 11


def shown(epoch: int, seed: int = 5, **options: Any) -> list[BatchKey]:
    sampler = BatchSampler(
        31, 8, seed=seed, position=lambda: (epoch, 0), labels=LABELS, balance="sampler", **options
    )
    return list(sampler)


def test_the_sampler_shows_as_many_photos_of_each_class() -> None:
    for epoch in range(5):
        rows = np.concatenate([key.rows for key in shown(epoch)])
        assert sorted(np.bincount(LABELS[rows])) == [10, 10, 11]
        times = np.bincount(rows, minlength=31)
        for label in range(3):
            assert np.ptp(times[label == LABELS]) <= 1  # none is shown at another's cost


def test_the_sampler_is_a_function_of_seed_and_epoch() -> None:
    orders = [tuple(np.concatenate([key.rows for key in shown(*at)])) for at in ((0, 5), (1, 5), (0, 6))]
    assert len(set(orders)) == 3
    assert orders[0] == tuple(np.concatenate([key.rows for key in shown(0, 5)]))
    ever = np.unique(np.concatenate([key.rows for epoch in range(8) for key in shown(epoch)]))
    assert len(ever) == 31  # what one epoch leaves out, another shows


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_see_together_what_one_sees_of_a_balanced_epoch(ranks: int) -> None:
    shared = [shown(1, rank=rank, ranks=ranks) for rank in range(ranks)]
    for batch, parts in zip(shown(1), zip(*shared, strict=True), strict=True):
        for name in ("rows", "slots"):
            together = np.concatenate([getattr(part, name) for part in parts])
            assert sorted(together) == sorted(getattr(batch, name))


def test_a_photo_shown_twice_is_augmented_twice(data: FlowersDataModule) -> None:
    photos = data.train_photos
    labels = np.where(np.arange(40) < 2, 0, 1)  # two photos, twenty times: ten of each class are not needed
    sampler = BatchSampler(40, 40, seed=0, labels=labels, balance="sampler")
    (key,) = sampler
    batch = photos[key]
    assert batch.draws is not None
    assert batch.keys is not None
    again = batch.rows == 0
    assert int(again.sum()) == 10
    assert len(torch.unique(batch.draws[again], dim=0)) == len(torch.unique(batch.keys[again])) == 10
    (same,) = sampler
    assert torch.equal(photos[same].draws, batch.draws)  # type: ignore[arg-type]


def test_the_weights_of_a_batch_are_1_on_average_over_all_ranks(data: FlowersDataModule) -> None:
    def weights(rank: int, ranks: int) -> list[np.ndarray]:
        sampler = BatchSampler(31, 8, rank, ranks, seed=5, labels=LABELS, balance="loss")
        return [key.weights for key in sampler if key.weights is not None]

    alone = weights(0, 1)
    assert [len(one) for one in alone] == [8, 8, 8, 7]
    for one, parts in zip(alone, zip(weights(0, 2), weights(1, 2), strict=True), strict=True):
        assert one.mean() == pytest.approx(1)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(one))


# ---------------------------------------------------------------- samples of photos


def test_chosen_are_even_over_classes() -> None:
    labels = np.repeat([0, 1, 2], [4, 100, 300])
    chosen = even_sample(labels, 60)
    assert np.bincount(labels[chosen]).tolist() == [4, 20, 20]
    assert len(set(chosen.tolist())) == 44
    assert {0, 3, 4, 103, 104, 403} <= set(chosen.tolist())  # from the first to the last
    assert np.array_equal(even_sample(labels, 10_000), np.arange(404))


def test_samples_are_even_over_the_classes_and_drawn_by_seed() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    chosen = even_sample(labels, 9, seed=0)
    assert labels[chosen].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert np.array_equal(chosen, even_sample(labels, 9, seed=0))
    assert not np.array_equal(chosen, even_sample(labels, 9, seed=1))
    assert sorted(even_sample(labels, 100, seed=0)) == list(range(73))

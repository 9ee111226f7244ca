"""What is done to a batch before a training step: augmentation, and the frozen part of the network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset

from flowers_pl.data.augmentation import augment
from flowers_pl.data.batches import Batch, CachedPhotos, PhotoFiles
from flowers_pl.data.cache_shards import MappedPixels
from flowers_pl.data.device_photos import DevicePhotos, has_room
from flowers_pl.data.feature_cache import FeatureCache, FrozenNetwork
from flowers_pl.data.packed import order_by_shards
from flowers_pl.data.prefetch import BatchKeys, PrefetchLoader, ThreadPlan
from flowers_pl.data.ranges import Augmentation
from flowers_pl.data.sampling import Balance, BatchSampler, WholeBatches, check_ranks

READERS = 2  # threads that copy decoded photos for a device, whose own thread needs the interpreter


class Preparation:
    """Augment training photos and run the frozen part of the network, ahead of training or on the device.

    Args:
        trainer: returns the Trainer; None where there is none.
        augmentation: how far training photos may be changed.
        size: pixels a side of augmented photos.
    """

    def __init__(
        self, trainer: Callable[[], L.Trainer | None], augmentation: Augmentation, size: int
    ) -> None:
        self.trainer, self.augmentation, self.size = trainer, augmentation, size
        self.feature_cache: FeatureCache | None = None

    def fitting(self) -> bool:
        """Return whether a model is being trained."""
        trainer = self.trainer()
        return trainer is not None and trainer.state.fn == TrainerFn.FITTING

    def position(self, num_photos: int, batch_size: int) -> tuple[int, int]:
        """Return the epoch and the batch to start with, which is not 0 after a resume inside an epoch."""
        trainer = self.trainer()
        if trainer is None or not self.fitting():
            return 0, 0
        loop: Any = trainer.fit_loop  # its annotations are too narrow
        done = loop.epoch_loop.batch_progress.current.processed
        same: Any = getattr(trainer, "overfit_batches", 0)  # each epoch is to show the same photos
        epoch = 0 if same else loop.epoch_progress.current.processed
        return epoch, done if done < -(-num_photos // batch_size) else 0

    def on_cpu(self) -> bool:
        """Return whether training runs on a CPU, so that the loader's threads do all that is done here."""
        trainer = self.trainer()
        return trainer is not None and trainer.strategy.root_device.type == "cpu"

    def frozen(self) -> FrozenNetwork | None:
        """Return the frozen part of the network; None where it is not separated from the rest."""
        return getattr(self._module(), "frozen", None)

    def ranges(self, epoch: int) -> Augmentation:
        """Return how far photos may be changed in an epoch of the run: less in the last ones of a stage."""
        stage: Any = getattr(self._module(), "stage", None)
        if stage is None or not 0 < stage.epochs_left(epoch) <= self.augmentation.weak_epochs:
            return self.augmentation
        return self.augmentation.weakened()

    def _module(self) -> Any:
        trainer = self.trainer()
        return trainer.lightning_module if trainer is not None else None

    def cache_features(self, photos: CachedPhotos, folder: Path | None) -> FeatureCache:
        """Store the features of photos from now on.

        Args:
            photos: not augmented.
            folder: of the file that holds the features.
        """
        self.feature_cache = FeatureCache(photos, self.frozen, folder)
        return self.feature_cache

    def prepare(self, batch: Batch) -> Batch:
        """Augment a batch, where it has draws, and compute its features, where a part is frozen."""
        if batch.features is not None or not batch.total:
            return batch
        photos, frozen = batch.photos, self.frozen()
        if batch.draws is not None:
            photos = augment(photos, batch.draws, self.ranges(batch.epoch), self.size)
        if frozen is None:
            return batch._replace(photos=photos)
        features = frozen(photos)
        if batch.draws is None and self.feature_cache is not None and self.fitting():
            self.feature_cache.put(batch.rows.cpu(), features)
        return batch._replace(photos=photos.new_empty(0, *photos.shape[1:]), features=features)

    def ahead(self, batch: Batch) -> Batch:
        """Do on the loader's threads what the device does not do."""
        return self.prepare(batch) if self.on_cpu() else batch

    def rank(self) -> tuple[int, int]:
        """Return which of the run's processes this is, and how many there are."""
        trainer = self.trainer()
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def loader(self, dataset: Dataset[Batch], keys: BatchKeys, workers: int | None) -> PrefetchLoader:
        """Load the batches of a data set that `keys` name, prepared; see `plan` for `workers`."""
        return PrefetchLoader(keys, dataset, self.ahead, partial(self.plan, dataset, workers))

    def shuffled(
        self, photos: CachedPhotos, batch_size: int, workers: int | None, seed: int, balance: Balance
    ) -> PrefetchLoader:
        """Load training photos, in another order each epoch; the ranks share each batch.

        Raises:
            FlowersError: the ranks cannot share it evenly.
        """
        rank, num_ranks = self.rank()
        check_ranks(batch_size, num_ranks)
        sampler = BatchSampler(
            len(photos), batch_size, rank, num_ranks, seed,
            position=partial(self.position, len(photos), batch_size),
            labels=photos.labels,
            balance=balance,
            reading=order_by_shards(photos),
        )  # fmt: skip
        return self.loader(self._on_device(photos), sampler, workers)

    def _on_device(self, photos: CachedPhotos) -> CachedPhotos | DevicePhotos:
        """Return the photos, on the device where it has room for all of them."""
        trainer = self.trainer()
        if trainer is None or not has_room(trainer.strategy.root_device, photos):
            return photos
        return DevicePhotos(photos, trainer.strategy.root_device)

    def in_order(
        self, photos: CachedPhotos | PhotoFiles, batch_size: int, workers: int | None, first: int = 0
    ) -> PrefetchLoader:
        """Load photos from `first` on, in their own order; the ranks take batches in turn.

        Photos of a pack come by its shards, and the ranks share each batch.
        """
        reading = order_by_shards(photos)
        if reading is not None:
            shared = BatchSampler(len(photos), batch_size, *self.rank(), reading=reading)
            return self.loader(photos, shared, workers)
        return self.loader(photos, WholeBatches(len(photos), batch_size, *self.rank(), first), workers)

    def plan(self, dataset: Dataset[Batch], workers: int | None) -> ThreadPlan:
        """Choose the threads that prepare batches of a data set; they start now.

        Args:
            dataset: what the batches are made of.
            workers: threads that prepare them; None for as many as help.
        """
        cached = isinstance(dataset, FeatureCache) and dataset.begin()
        frozen, cores = self.frozen(), torch.get_num_threads()
        part = frozen.chunk if frozen is not None else 8
        if workers == 0 or cached:
            return ThreadPlan(0, cores, part)
        if not self.on_cpu():
            if isinstance(dataset, DevicePhotos):
                return ThreadPlan(0, cores, len(dataset))
            if isinstance(dataset, CachedPhotos) and isinstance(dataset.pixels, MappedPixels):
                return ThreadPlan(workers or min(READERS, cores), cores, len(dataset))  # batches in one part
            return ThreadPlan(workers or cores, cores, part)
        if cores == 1 and workers is None:
            return ThreadPlan(0, 1, part)
        own_cores = _own_cores(frozen, cores)
        return ThreadPlan(workers or min(cores, cores - own_cores + 1), own_cores, part)


def _own_cores(frozen: FrozenNetwork | None, cores: int) -> int:
    """Return on how many cores the trained part computes: on one where that is the head alone, on half of
    them beside a frozen part of about its own cost, on all where little is frozen."""
    if frozen is None or frozen.share < 0.5:
        return cores
    return 1 if frozen.pools else max(1, cores // 2)

"""FlowersDataModule: from a folder of photos, or of drawings, to batches on the device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import printable
from flowers_pl.data.augmentation import Augmentation, augment
from flowers_pl.data.batches import Batch, BatchSampler, CachedPhotos, PhotoFiles
from flowers_pl.data.cache import DecodedPhotos, decode_photos
from flowers_pl.data.download import download_flower_photos
from flowers_pl.data.drawing_folder import write_drawings
from flowers_pl.data.duplicates import duplicate_groups
from flowers_pl.data.exclusions import leave_out
from flowers_pl.data.feature_cache import KeptFeatures
from flowers_pl.data.folder import LeftOut, Photo, check_classes, list_photos, list_pictures, tell_left_out
from flowers_pl.data.prefetch import FrozenStart, PrefetchLoader, ThreadPlan
from flowers_pl.data.sampling import Balance
from flowers_pl.data.split import (
    TRAIN,
    VAL,
    Placed,
    check_sides,
    grouped_split,
    notebook_split,
    read_split,
    straddling,
)

log = logging.getLogger(__name__)


class FlowersDataModule(L.LightningDataModule):
    """Photos from a folder of class folders: checked, decoded once, split 80/20, augmented.

    Args:
        root: the folder; has one folder of photos for each class.
        image_size: pixels a side; photos are squashed to this square.
        batch_size: photos a training step, on all devices together.
        val_fraction: share of the photos that validate.
        split: 'grouped' keeps duplicates on one side, 'notebook' is the original's, or a path to a split.csv
            that a run wrote.
        split_seed: decides which photos validate; not the training seed, so that seeds can be compared.
        seed: decides order, augmentation and dropout.
        exclude: a CSV file whose column path names photos of `root` to leave out; 'audit --write' writes one.
        augmentation: how far training photos may be changed.
        balance: against classes of unequal size: 'sampler' shows as many photos of each class in an epoch,
            'loss' weighs the training losses so that each class counts the same. Validation is not changed.
        unreadable: what `fit` does about photos that cannot be read: 'skip' names them and goes on without
            them, 'error' ends the run.
        test_root: a folder of class folders to test on; without it `test` judges the validation side.
        predict_root: a photo, or a folder of photos, to predict.
        drawn: draw so many flowers of each kind into `root` instead of wanting photos there; 0 for photos.
        drawn_size: pixels a side of a drawing.
        cache: keep photos decoded, 77 KB each at 160 pixels; without it each epoch reads their files again.
        cache_dir: where decoded photos are kept; default ~/.cache/flowers_pl.
        workers: processes that decode the photos once, and threads that prepare batches; default as many as
            there are cores, 0 for none.
    """

    def __init__(
        self,
        root: str = "data/flowers",
        image_size: int = 160,
        batch_size: int = 32,
        val_fraction: float = 0.2,
        split: str = "grouped",
        split_seed: int = 0,
        seed: int = 0,
        exclude: str | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        balance: Balance = "none",
        unreadable: Literal["skip", "error"] = "skip",
        test_root: str | None = None,
        predict_root: str | None = None,
        drawn: int = 0,
        drawn_size: int = 96,
        cache: bool = True,
        cache_dir: str | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        check_settings(image_size, val_fraction, workers)
        if batch_size < 1:
            raise FlowersError(f"--data.batch_size must be at least 1, not {batch_size}.")
        if drawn < 0 or drawn == 1:
            raise FlowersError(f"--data.drawn must be 0 or at least 2, not {drawn}.")
        self.root, self.image_size, self.batch_size = Path(root), image_size, batch_size
        self.val_fraction, self.split, self.split_seed, self.seed = val_fraction, split, split_seed, seed
        self.exclude = None if exclude is None else str(Path(exclude).resolve())
        self.augmentation, self.workers = augmentation, workers
        self.balance, self.unreadable = balance, unreadable
        self.test_root, self.predict_root = test_root, predict_root
        self.drawn, self.drawn_size = drawn, drawn_size
        self.cache = cache
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.classes: list[str] = []
        self.placed: list[Placed] = []
        self.left_out: list[LeftOut] = []
        self.judged: list[Photo] = []
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @property
    def kind(self) -> str:
        """What the pictures are called."""
        return "drawings" if self.drawn else "photos"

    # ---------------------------------------------------------------- what there is

    def prepare_data(self) -> None:
        """Draw or download what is missing, then decode all photos; called on one rank of each machine.

        Raises:
            FlowersError: there are no photos and no way to get them, or the folder is not as
                `photos.list_photos` wants it.
        """
        if self.placed or not self._needs_root():
            return
        if self.drawn:
            write_drawings(self.root, self.drawn, self.split_seed, self.drawn_size)
            log.info("%s holds drawings, not photos: %d of each kind.", self.root, self.drawn)
        elif not self.root.exists() and self.root == Path("data/flowers"):
            download_flower_photos(self.root)
        self._decoded()

    def _needs_root(self) -> bool:
        fn = self.trainer.state.fn if self.trainer is not None else TrainerFn.FITTING
        return not (fn == TrainerFn.PREDICTING or (fn == TrainerFn.TESTING and self.test_root is not None))

    def _decoded(self) -> DecodedPhotos:
        photos = list_photos(self.root)
        return decode_photos(self.root, photos, self.image_size, self.cache_dir, self.workers, self.cache)

    def setup(self, stage: str) -> None:
        """Split the photos (`fit`, `validate`, `test` without a test_root) or list those to judge.

        A trained model brings its classes and image size; in `fit` they come from the photos.
        """
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if stage != "fit" and getattr(module, "classes", None):
            self.classes, self.image_size = list(module.classes), module.image_size
        if stage == "predict":
            self._setup_predict()
        elif stage == "test" and self.test_root is not None:
            self._setup_test(self.test_root)
        else:
            self._setup_split()

    def _setup_split(self) -> None:
        if self.placed:
            return
        listed = list_photos(self.root)
        every = decode_photos(self.root, listed, self.image_size, self.cache_dir, self.workers, self.cache)
        decoded, excluded = leave_out(every, self.exclude)
        fitting = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        tell_left_out(decoded.left_out, self.root, self.unreadable == "skip" or not fitting)
        found = check_classes(decoded.photos, listed, self.root)
        if unknown := sorted(set(found) - set(self.classes or found)):
            raise FlowersError(
                f"--data.root: {str(self.root)!r} has class {unknown[0]!r}, which the model does not"
                " know; it knows"
                f" {', '.join(self.classes)}."
            )
        self.classes = self.classes or found
        groups = duplicate_groups(decoded.digests, decoded.phashes, decoded.thumbs)
        self.placed, conflicts = self._split(decoded, groups, excluded)
        check_sides(self.placed, found, every_class=self.split == "grouped")
        self._agree()
        self.left_out = sorted([*decoded.left_out, *conflicts, *excluded])
        self._log_split(len(decoded.left_out), conflicts, len(excluded))
        row_of = dict(zip((photo.path for photo in decoded.photos), decoded.rows.tolist(), strict=True))
        self.train_photos = self._cached(decoded, row_of, TRAIN, self.seed)
        self.val_photos = self._cached(decoded, row_of, VAL, None)
        self.judged = [Photo(one.path, one.label) for one in self.placed if one.side == VAL]

    def _agree(self) -> None:
        """See that all ranks found the same photos: each lists them for itself, and they may change."""
        if self.trainer is None or self.trainer.world_size == 1:
            return
        strategy = self.trainer.strategy
        if not strategy.reduce_boolean_decision(strategy.broadcast(self.placed) == self.placed):
            raise FlowersError(
                f"--data.root: the photos in {str(self.root)!r} changed while the run began; start it again."
            )

    def _split(
        self, decoded: DecodedPhotos, groups: np.ndarray, excluded: list[LeftOut]
    ) -> tuple[list[Placed], list[LeftOut]]:
        if self.split == "grouped":
            return grouped_split(decoded.photos, groups, self.val_fraction, self.split_seed)
        if self.split == "notebook":
            return notebook_split(decoded.photos, groups, self.val_fraction), []
        return read_split(Path(self.split), decoded.photos, {one.path for one in excluded}), []

    def _log_split(self, unreadable: int, conflicts: list[LeftOut], excluded: int) -> None:
        sides = [one.side for one in self.placed]
        out = unreadable + len(conflicts) + excluded
        why = f"({unreadable} unreadable, {len(conflicts)} under two classes, {excluded} excluded)"
        told = out or self.split in ("grouped", "notebook")  # a run's split.csv does not say what it left out
        log.info(
            "%s: %d classes, %d photos to train on, %d to validate with%s.",
            self.root, len(self.classes), sides.count(TRAIN), sides.count(VAL),
            f", {out} left out {why}" if told else "",
        )  # fmt: skip
        for path, reason in conflicts:
            log.warning("Left out: %s %s.", printable(path), printable(reason))
        for paths in straddling(self.placed).values():
            log.warning("Duplicates stand on both sides of the split: %s.", printable(", ".join(paths)))

    def _cached(
        self, decoded: DecodedPhotos, row_of: dict[str, int], side: str, seed: int | None
    ) -> CachedPhotos:
        members = [one for one in self.placed if one.side == side]
        rows = np.array([row_of[one.path] for one in members])
        return CachedPhotos(decoded, rows, self._labels([one.label for one in members]), seed)

    def _labels(self, names: Sequence[str]) -> np.ndarray:
        number = {name: label for label, name in enumerate(self.classes)}
        return np.array([number[name] for name in names], dtype=np.int64)

    def _setup_test(self, test_root: str) -> None:
        self.judged = list_photos(test_root, "--data.test_root")
        if unknown := sorted({photo.label for photo in self.judged} - set(self.classes)):
            raise FlowersError(
                f"--data.test_root: {test_root!r} has class {unknown[0]!r}, which the model does not"
                " know; it knows"
                f" {', '.join(self.classes)}."
            )
        labels = self._labels([photo.label for photo in self.judged])
        self.files = PhotoFiles(
            Path(test_root), [photo.path for photo in self.judged], self.image_size, labels
        )

    def _setup_predict(self) -> None:
        if self.predict_root is None:
            raise FlowersError(
                "--data.predict_root is missing; give a photo or a folder of photos to predict."
            )
        root, paths = list_pictures(self.predict_root)
        self.judged = [Photo(path, "") for path in paths]
        self.files = PhotoFiles(root, paths, self.image_size)

    # ---------------------------------------------------------------- batches

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of devices that a batch cannot be divided among evenly.

        Raises:
            FlowersError: `batch_size` is no multiple of it.
        """
        if self.batch_size % ranks:
            raise FlowersError(
                f"--data.batch_size {self.batch_size} cannot be divided among {ranks} devices; give a"
                f" multiple of {ranks}."
            )

    def train_dataloader(self) -> PrefetchLoader:
        """Shuffled and augmented anew each epoch."""
        self.check_ranks(self.trainer.world_size if self.trainer is not None else 1)
        return self._loader(self.train_photos, self.batch_size, shuffled=True)

    def val_dataloader(self) -> PrefetchLoader:
        """The validation side as it is, in the order of its paths."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return self._loader(self.val_photos, 2 * self.batch_size)
        self._kept = KeptFeatures(self.val_photos, self._frozen, self.cache_dir)
        return self._loader(self._kept, 2 * self.batch_size)

    def test_dataloader(self) -> PrefetchLoader:
        """All photos of `test_root`, or the validation side."""
        return self.val_dataloader() if self.test_root is None else self.predict_dataloader()

    def predict_dataloader(self) -> PrefetchLoader:
        """Photos read from their files, in the order of their paths."""
        return self._loader(self.files, 2 * self.batch_size)

    def _loader(
        self, photos: CachedPhotos | KeptFeatures | PhotoFiles, batch_size: int, shuffled: bool = False
    ) -> PrefetchLoader:
        rank, ranks = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        )
        sampler = BatchSampler(len(photos), batch_size, rank, ranks)
        if shuffled:
            sampler.seed, sampler.position = self.seed, self._position
            sampler.labels, sampler.balance = self.train_photos.labels, self.balance
        prepare = self._prepare if self._on_cpu() else _as_it_is
        return PrefetchLoader(sampler, photos, prepare, partial(self._share, photos))

    def _on_cpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cpu"

    def _share(self, photos: CachedPhotos | KeptFeatures | PhotoFiles) -> ThreadPlan:
        """Who computes what while batches are prepared."""
        if isinstance(photos, KeptFeatures):
            photos.begin()
        frozen, cores = self._frozen(), torch.get_num_threads()
        part = frozen.chunk if frozen is not None else 8
        if self.workers == 0 or (isinstance(photos, KeptFeatures) and photos.complete()):
            return ThreadPlan(0, cores, part)
        if not self._on_cpu():
            return ThreadPlan(self.workers or cores, cores, part)
        if cores == 1 and self.workers is None:
            return ThreadPlan(0, 1, part)
        own = _own_cores(frozen, cores)
        return ThreadPlan(self.workers or min(cores, cores - own + 1), own, part)

    def _position(self) -> tuple[int, int]:
        """The epoch, and the batch to start with: not 0 after a resume inside an epoch."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return 0, 0
        loop: Any = self.trainer.fit_loop  # its annotations are too narrow
        done = loop.epoch_loop.batch_progress.current.processed
        epoch = loop.epoch_progress.current.processed
        return epoch, done if done < -(-len(self.train_photos) // self.batch_size) else 0

    def _frozen(self) -> FrozenStart | None:
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        return getattr(module, "frozen", None)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """A batch is on the CPU already; looking through it, as Lightning would, takes a part of a step."""
        if self._on_cpu():
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)  # type: ignore[no-any-return]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training photos and run the frozen part, on the device; a CPU did that ahead."""
        return batch if self._on_cpu() else self._prepare(batch)

    def _prepare(self, batch: Batch) -> Batch:
        if batch.features is not None:
            return batch
        photos, frozen = batch.photos, self._frozen()
        if batch.draws is not None:
            photos = augment(photos, batch.draws, self.augmentation)
        if frozen is None:
            return batch._replace(photos=photos)
        features = frozen(photos)
        if batch.draws is None and self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._kept.put(batch.rows.cpu(), features)
        return batch._replace(photos=photos.new_empty(0, *photos.shape[1:]), features=features)

    def settings(self) -> dict[str, Any]:
        """What decides the validation side, in types that any checkpoint may hold."""
        return {
            "root": str(self.root.resolve()),
            "image_size": self.image_size,
            "val_fraction": self.val_fraction,
            "split": self.split,
            "split_seed": self.split_seed,
            "exclude": self.exclude,
            "drawn": self.drawn,
            "drawn_size": self.drawn_size,
        }


def check_settings(image_size: int, val_fraction: float, workers: int | None) -> None:
    """Check the settings that `audit` has too.

    Raises:
        FlowersError: one is out of its range.
    """
    if image_size < 32:
        raise FlowersError(
            f"--data.image_size must be at least 32 (the backbone halves it five times), not {image_size}."
        )
    if not 0 < val_fraction < 1:
        raise FlowersError(f"--data.val_fraction must be more than 0 and less than 1, not {val_fraction}.")
    if workers is not None and workers < 0:
        raise FlowersError(f"--data.workers must be 0 or more, not {workers}.")


def _own_cores(frozen: FrozenStart | None, cores: int) -> int:
    """On how many cores the trained part computes: on one where that is the head alone, on half of them
    beside a frozen part of about its own cost, on all where little is frozen."""
    if frozen is None or frozen.share < 0.5:
        return cores
    return 1 if frozen.pools else max(1, cores // 2)


def _as_it_is(batch: Batch) -> Batch:
    return batch

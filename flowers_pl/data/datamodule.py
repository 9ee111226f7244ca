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
from flowers_pl.core.files import seen_from_here
from flowers_pl.data.augmentation import Augmentation
from flowers_pl.data.batches import Batch, CachedPhotos, PhotoFiles
from flowers_pl.data.cache import DecodedPhotos, decode_photos
from flowers_pl.data.download import download_flower_photos
from flowers_pl.data.drawing_folder import write_drawings
from flowers_pl.data.feature_cache import FeatureCache
from flowers_pl.data.folder import TEST, VAL, LeftOut, Photo, list_photos, list_pictures, split_folders
from flowers_pl.data.formats import Limits, set_limits
from flowers_pl.data.prefetch import PrefetchLoader
from flowers_pl.data.preparation import Preparation
from flowers_pl.data.sampling import Balance, BatchSampler
from flowers_pl.data.split import Placed
from flowers_pl.data.split_photos import SplitPhotos, SplitSettings, check_settings, class_numbers

log = logging.getLogger(__name__)
SETTINGS = ("image_size", "val_fraction", "split", "split_seed", "exclude", "drawn", "drawn_size")


class FlowersDataModule(L.LightningDataModule):
    """Photos from a folder of class folders: checked, decoded once, split 80/20, augmented.

    Args:
        root: the folder; has one folder of photos for each class, or such folders below train/, val/ and
            test/, which are then the split.
        image_size: pixels a side; photos are squashed to this square.
        batch_size: photos a training step, on all devices together.
        val_fraction: share of the photos that validate.
        split: 'grouped' keeps duplicates on one side, or takes train/ and val/ below the root; 'notebook' is
            the original's; or a path to a split.csv that a run wrote.
        split_seed: decides which photos validate; not the training seed, so that seeds can be compared.
        seed: decides order, augmentation and dropout.
        exclude: a CSV file whose column path names photos of `root` to leave out; 'audit --write' writes one.
        augmentation: how far training photos may be changed.
        balance: against classes of unequal size: 'sampler' shows as many photos of each class in an epoch,
            'loss' weighs the training losses so that each class counts the same. Validation is not changed.
        unreadable: what `fit` does about photos that cannot be read: 'skip' names them and trains without
            them, 'error' ends the run.
        test_root: a folder of class folders to test on; default test/ where the root has it, else `test`
            reports on the validation side.
        predict_root: a photo, or a folder of photos, to predict.
        drawn: number of flowers of each class to draw into `root`; 0 for photos that are there.
        drawn_size: pixels a side of a drawing.
        cache: keep photos decoded, 77 KB each at 160 pixels; without it each epoch reads their files again.
        cache_dir: folder for decoded photos; default ~/.cache/flowers_pl.
        workers: processes that decode the photos once, and threads that prepare batches; default as many as
            there are cores, 0 for none.
        limits: what is refused, against pictures that would exhaust memory or time.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root, cache_dir = f"{folder}/flowers", f"{folder}/cache"
    ...     data = FlowersDataModule(root, image_size=32, drawn=3, cache_dir=cache_dir, workers=0)
    ...     data.prepare_data()
    ...     data.setup("fit")
    ...     print(data.classes, len(data.train_photos), len(data.val_photos))
    ...     print([tuple(batch.photos.shape) for batch in data.val_dataloader()])
    ['daisy', 'dandelion', 'rose', 'sunflower', 'tulip'] 10 5
    [(5, 3, 32, 32)]
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
        limits: Limits = Limits(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        set_limits(limits)
        check_settings(image_size, val_fraction, workers, batch_size, drawn)
        self.root, self.image_size, self.batch_size = Path(root).expanduser(), image_size, batch_size
        self.val_fraction, self.split, self.split_seed, self.seed = val_fraction, split, split_seed, seed
        self.exclude = None if exclude is None else str(Path(exclude).resolve())
        self.augmentation, self.workers = augmentation, workers
        self.balance, self.unreadable = balance, unreadable
        self.test_root, self.predict_root = test_root, predict_root
        self.drawn, self.drawn_size = drawn, drawn_size
        self.cache = cache
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.classes: list[str] = []
        self.reported_photos: list[Photo] = []
        self._split: SplitPhotos | None = None
        self._files: PhotoFiles | None = None
        self._preparation = Preparation(lambda: self.trainer, augmentation)
        self.allow_zero_length_dataloader_with_multiple_devices = True

    # ---------------------------------------------------------------- what there is

    def prepare_data(self) -> None:
        """Draw or download what is missing, then decode all photos; called on one rank of each machine.

        Raises:
            FlowersError: there are no photos and no way to get them; or as `folder.list_photos` does.
        """
        if self._split is not None or not self._needs_root():
            return
        if self.drawn:
            write_drawings(self.root, self.drawn, self.split_seed, self.drawn_size)
            log.info("%s holds drawings, not photos: %d of each kind.", self.root, self.drawn)
        elif not self.root.exists() and self.root.absolute() == Path("data/flowers").absolute():
            download_flower_photos(self.root)
        self._list_and_decode(retry=True)

    def _needs_root(self) -> bool:
        fn = self.trainer.state.fn if self.trainer is not None else TrainerFn.FITTING
        if fn == TrainerFn.TESTING:
            return self._find_test_root() is None
        return fn != TrainerFn.PREDICTING

    def _find_test_root(self) -> str | None:
        tests = [name for name, side in split_folders(self.root).items() if side == TEST]
        if self.test_root is None and tests:
            self.test_root = seen_from_here(self.root / tests[0])
        return self.test_root

    def _list_and_decode(self, retry: bool) -> tuple[list[Photo], DecodedPhotos]:
        listed = list_photos(self.root)
        return listed, decode_photos(
            self.root, listed, self.image_size, self.cache_dir, self.workers, self.cache, retry
        )

    def setup(self, stage: str) -> None:
        """Split the photos (`fit`, `validate`, `test` without a test_root) or list those to test or predict.

        A trained model brings its classes and image size; in `fit` they come from the photos.

        Raises:
            FlowersError: the photos or the settings are not usable.
        """
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if stage != "fit" and getattr(module, "classes", None):
            self.classes, self.image_size = list(module.classes), module.image_size
        if stage == "predict":
            self._setup_predict()
        elif stage == "test" and (test_root := self._find_test_root()) is not None:
            self._setup_test(Path(test_root))
        elif self._split is None:
            self._setup_split()

    def _setup_split(self) -> None:
        skip = self.unreadable == "skip" or not (self.trainer is None or self._preparation.fitting())
        settings = SplitSettings(
            self.root, self.split, self.val_fraction, self.split_seed, self.exclude, skip
        )
        listed, decoded = self._list_and_decode(retry=False)
        self._split = SplitPhotos.from_decoded(listed, decoded, settings, self.seed, self.classes)
        if self.trainer is not None and self.trainer.world_size > 1:
            self._split.check_ranks_agree(self.trainer.strategy, self.root)
        self.classes = self._split.class_names
        validating = [photo.path for photo in self.placed if photo.side == VAL]
        self.reported_photos = self._named(validating, self.val_photos.labels)

    def _named(self, paths: Sequence[str], labels: np.ndarray) -> list[Photo]:
        """Return photos with their classes, spelled as the model spells them."""
        return [Photo(path, self.classes[label]) for path, label in zip(paths, labels, strict=True)]

    def _setup_test(self, test_root: Path) -> None:
        paths, names = zip(*list_photos(test_root, "--data.test_root"), strict=True)
        labels = class_numbers(names, self.classes, test_root, "--data.test_root")
        self.reported_photos = self._named(paths, labels)
        self._files = PhotoFiles(test_root, paths, self.image_size, labels)

    def _setup_predict(self) -> None:
        if self.predict_root is None:
            raise FlowersError(
                "--data.predict_root is missing; give a photo or a folder of photos to predict."
            )
        root, paths = list_pictures(self.predict_root)
        self.reported_photos = [Photo(path, "") for path in paths]
        self._files = PhotoFiles(root, paths, self.image_size)

    @property
    def placed(self) -> list[Placed]:
        """The photos that take part, each with its side of the split; empty before `setup`."""
        return [] if self._split is None else self._split.placed

    @property
    def left_out(self) -> list[LeftOut]:
        """The photos that take no part, each with the reason; empty before `setup`."""
        return [] if self._split is None else self._split.left_out

    @property
    def train_photos(self) -> CachedPhotos:
        """The training side; `setup("fit")` must have split the photos."""
        return self._sides().train

    @property
    def val_photos(self) -> CachedPhotos:
        """The validation side; `setup("fit")` must have split the photos."""
        return self._sides().val

    def _sides(self) -> SplitPhotos:
        if self._split is None:
            raise RuntimeError("the photos are not split yet; call setup('fit') first")
        return self._split

    # ---------------------------------------------------------------- batches

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of devices that does not divide the batch.

        Raises:
            FlowersError: `batch_size` is no multiple of it.
        """
        if self.batch_size % ranks:
            raise FlowersError(
                f"--data.batch_size {self.batch_size} cannot be divided among {ranks} devices; give a"
                f" multiple of {ranks}."
            )

    def train_dataloader(self) -> PrefetchLoader:
        """Load the training side, shuffled and augmented differently each epoch."""
        self.check_ranks(self.trainer.world_size if self.trainer is not None else 1)
        return self._loader(self.train_photos, self.batch_size, shuffled=True)

    def val_dataloader(self) -> PrefetchLoader:
        """Load the validation side, not augmented, in the order of its paths."""
        if not self._preparation.fitting():
            return self._loader(self.val_photos, 2 * self.batch_size)
        features = self._preparation.cache_features(self.val_photos, self.cache_dir)
        return self._loader(features, 2 * self.batch_size)

    def test_dataloader(self) -> PrefetchLoader:
        """Load all photos of `test_root`, or the validation side."""
        return self.val_dataloader() if self.test_root is None else self.predict_dataloader()

    def predict_dataloader(self) -> PrefetchLoader:
        """Load photos from their files, in the order of their paths."""
        if self._files is None:
            raise RuntimeError("there is nothing to predict yet; call setup('predict') first")
        return self._loader(self._files, 2 * self.batch_size)

    def _loader(
        self, dataset: CachedPhotos | FeatureCache | PhotoFiles, batch_size: int, shuffled: bool = False
    ) -> PrefetchLoader:
        trainer = self.trainer
        rank, num_ranks = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler = BatchSampler(len(dataset), batch_size, rank, num_ranks)
        if shuffled:
            sampler.seed, sampler.position = self.seed, self._position
            sampler.labels, sampler.balance = self.train_photos.labels, self.balance
        plan = partial(self._preparation.plan, dataset, self.workers)
        return PrefetchLoader(sampler, dataset, self._preparation.ahead, plan)

    def _position(self) -> tuple[int, int]:
        """Return the epoch and the batch to start with, which is not 0 after a resume inside an epoch."""
        if self.trainer is None or not self._preparation.fitting():
            return 0, 0
        loop: Any = self.trainer.fit_loop  # its annotations are too narrow
        done = loop.epoch_loop.batch_progress.current.processed
        same: Any = getattr(self.trainer, "overfit_batches", 0)  # each epoch is to show the same photos
        epoch = 0 if same else loop.epoch_progress.current.processed
        return epoch, done if done < -(-len(self.train_photos) // self.batch_size) else 0

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave batches on the CPU as they are; searching them for tensors, as Lightning does, takes time."""
        if self._preparation.on_cpu():
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)  # type: ignore[no-any-return]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training photos and run the frozen part, on the device; on a CPU the loader did so."""
        return batch if self._preparation.on_cpu() else self._preparation.prepare(batch)

    def settings(self) -> dict[str, Any]:
        """Return what decides the validation side, in types that any checkpoint may hold."""
        return {"root": str(self.root.resolve()), **{name: getattr(self, name) for name in SETTINGS}}

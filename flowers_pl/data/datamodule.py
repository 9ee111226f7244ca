"""FlowersDataModule: from a folder of photos, or of drawings, to batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn

from flowers_pl.core.paths import seen_from_here
from flowers_pl.data.batches import Batch, CachedPhotos, PhotoFiles, photos_to_predict
from flowers_pl.data.cache import DecodedPhotos
from flowers_pl.data.drawing_folder import obtain_photos
from flowers_pl.data.folder import TEST, TRAIN, VAL, LeftOut, Photo, list_photos, split_folders
from flowers_pl.data.formats import Limits, set_limits
from flowers_pl.data.packed import decode_root, folder_of, order_by_shards
from flowers_pl.data.prefetch import PrefetchLoader
from flowers_pl.data.preparation import Preparation
from flowers_pl.data.ranges import Augmentation
from flowers_pl.data.sampling import Balance, BatchSampler
from flowers_pl.data.soft_labels import SoftLabels
from flowers_pl.data.split import Placed
from flowers_pl.data.split_photos import SplitPhotos, SplitSettings, check_settings, class_numbers
from flowers_pl.packs.roots import DEFAULT_LIMIT, address_of, refuse_pack

SETTINGS = ("image_size", "val_fraction", "split", "split_seed", "exclude", "review", "drawn", "drawn_size")


class FlowersDataModule(L.LightningDataModule):
    """Photos from a folder of class folders: checked, decoded once, split 80/20, augmented.

    Args:
        root: the folder; has one folder of photos for each class, or such folders below train/, val/ and
            test/, which are then the split; or a pack (see 'pack'), here or at s3://bucket/prefix.
        image_size: pixels a side; photos are squashed to this square.
        batch_size: photos a training step, on all devices together.
        val_fraction: share of the photos that validate.
        split: 'grouped' keeps duplicates on one side, or takes train/ and val/ below the root; 'notebook' is
            the original's; or a path to a split.csv that a run wrote.
        split_seed: decides which photos validate; not the training seed, so that seeds can be compared.
        seed: decides order, augmentation and dropout.
        exclude: a CSV file whose column path names photos of `root` to leave out; 'audit --write' writes one.
        stored_size: pixels a side that training photos are kept at, for sharper crops (`augmentation.crop`);
            default `image_size`, at which validation photos are read in any case.
        review: a CSV file of decisions on photos, as the page of 'audit' saves it; `exclude` wins over it.
        augmentation: how far training photos may be changed.
        balance: against classes of unequal size: 'sampler' shows equally many photos of each class in an
            epoch, 'loss' weights the training losses so that each class counts the same. Validation is not
            changed.
        soft_labels: a CSV file of probabilities, as 'teach' writes it, to mix into training photos' labels.
        soft_labels_weight: their share of what is trained on; the rest is the photos' own labels.
        unreadable: what `fit` does about photos that cannot be read: 'skip' names them and trains without
            them, 'error' ends the run.
        test_root: a folder of class folders to test on; default test/ where the root has it, else `test`
            reports on the validation side.
        predict_root: a photo, or a folder of photos, to predict.
        drawn: number of flowers of each class to draw into `root`; 0 for photos that are there.
        drawn_size: pixels a side of a drawing.
        cache: keep photos decoded, 77 KB each at 160 pixels; without it each epoch reads their files again.
        cache_dir: folder for decoded photos; default ~/.cache/flowers_pl.
        cache_limit: GB that all decoded photos there may take: the least recently used go first, and none in
            use; default as much as the disk has room for.
        shard_cache_limit: GB that this machine keeps of the shards of a pack at an address.
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
        stored_size: int | None = None,
        review: str | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        balance: Balance = "none",
        soft_labels: str | None = None,
        soft_labels_weight: float = 0.5,
        unreadable: Literal["skip", "error"] = "skip",
        test_root: str | None = None,
        predict_root: str | None = None,
        drawn: int = 0,
        drawn_size: int = 96,
        cache: bool = True,
        cache_dir: str | None = None,
        cache_limit: float | None = None,
        shard_cache_limit: float = DEFAULT_LIMIT,
        workers: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        set_limits(limits)
        check_settings(image_size, val_fraction, workers, batch_size, drawn, stored_size, cache_limit)
        self.cache_dir, self.cache_limit = None if cache_dir is None else Path(cache_dir), cache_limit
        self.root, self.image_size = folder_of(root, self.cache_dir, shard_cache_limit), image_size
        self.batch_size, self.val_fraction, self.split = batch_size, val_fraction, split
        self.split_seed, self.seed, self.drawn, self.drawn_size = split_seed, seed, drawn, drawn_size
        self.exclude, self.review = (file and str(Path(file).resolve()) for file in (exclude, review))
        self.augmentation, self.workers, self.balance, self.cache = augmentation, workers, balance, cache
        self.stored_size = stored_size or image_size
        self.soft_labels = SoftLabels(soft_labels, soft_labels_weight)
        self.unreadable, self.test_root, self.predict_root = unreadable, test_root, predict_root
        self.classes: list[str] = []
        self.reported_photos: list[Photo] = []
        self.all_of: Path | None = None  # the split.csv whose photos, of both sides, a refit trains on
        self._split: SplitPhotos | None = None
        self._stored: DecodedPhotos | None = None
        self._files: PhotoFiles | None = None
        self._listed: tuple[str | None, int] | None = None  # what `_files` are, in `predict`
        self.num_predicted = 0  # photos that need not be predicted any more
        self._preparation = Preparation(lambda: self.trainer, augmentation, image_size)
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def prepare_data(self) -> None:
        """Draw or download what is missing, then decode all photos; called on one rank of each machine.

        Raises:
            FlowersError: there are no photos and no way to get them; or as `folder.list_photos` does.
        """
        if self._split is not None or not self._needs_root():
            return
        obtain_photos(self.root, self.drawn, self.split_seed, self.drawn_size)
        self._list_and_decode(retry=True)

    def _needs_root(self) -> bool:
        fn = self.trainer.state.fn if self.trainer is not None else TrainerFn.FITTING
        return self.find_test_root() is None if fn == TrainerFn.TESTING else fn != TrainerFn.PREDICTING

    def find_test_root(self) -> str | None:
        """Return the folder to test on, test/ of the root where no other is given; None for neither."""
        tests = [name for name, side in split_folders(self.root).items() if side == TEST]
        if self.test_root is None and tests and (self.root / tests[0]).is_dir():
            self.test_root = seen_from_here(self.root / tests[0])
        return self.test_root

    def _list_and_decode(self, retry: bool) -> tuple[list[Photo], DecodedPhotos]:
        listed = list_photos(self.root)
        settings = (self.cache_dir, self.workers, self.cache, retry, self.cache_limit)
        if self._training() and self.stored_size != self.image_size:
            self._stored = decode_root(self.root, listed, self.stored_size, *settings)
        return listed, decode_root(self.root, listed, self.image_size, *settings)

    def _training(self) -> bool:
        return self.trainer is None or self._preparation.fitting()

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
        elif stage == "test" and (test_root := self.find_test_root()) is not None:
            self._setup_test(Path(test_root))
        elif self._split is None:
            self._setup_split()

    def _setup_split(self) -> None:
        skip = self.unreadable == "skip" or not self._training()
        settings = SplitSettings(
            self.root, self.split, self.val_fraction, self.split_seed, self.exclude, self.review, skip,
            self.all_of,
        )  # fmt: skip
        listed, decoded = self._list_and_decode(retry=False)
        self._split = split = SplitPhotos.from_decoded(
            listed, decoded, settings, self.seed, self.classes, self.augmentation.num_draws
        )
        if self.trainer is not None and self.trainer.world_size > 1:
            self._split.check_ranks_agree(self.trainer.strategy, self.root)
        self.classes = split.class_names
        split.train.targets = self.soft_labels.targets(self.classes, split.placed, split.train.labels)
        self.reported_photos = self._named(split.paths(VAL), split.val.labels)

    def _named(self, paths: Sequence[str], labels: np.ndarray) -> list[Photo]:
        """Return photos with their classes, spelled as the model spells them."""
        return [Photo(path, self.classes[label]) for path, label in zip(paths, labels, strict=True)]

    def _setup_test(self, test_root: Path) -> None:
        refuse_pack(test_root, "--data.test_root")
        paths, names = zip(*list_photos(test_root, "--data.test_root"), strict=True)
        labels = class_numbers(names, self.classes, test_root, "--data.test_root")
        self.reported_photos = self._named(paths, labels)
        self._files, self._listed = PhotoFiles(test_root, paths, self.image_size, labels), None

    def _setup_predict(self) -> None:
        wanted = (self.predict_root, self.image_size)
        if self._listed != wanted:
            self._files, self._listed = photos_to_predict(*wanted), wanted

    @property
    def file_paths(self) -> Sequence[str]:
        """The photos to predict, or those of `test_root`; none before `setup`."""
        return [] if self._files is None else self._files.paths

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
        """The training side at `image_size`; `setup("fit")` must have split the photos."""
        return self._sides().train

    @property
    def val_photos(self) -> CachedPhotos:
        """The validation side; `setup("fit")` must have split the photos."""
        return self._sides().val

    def kept_photos(self, side: str) -> CachedPhotos:
        """Return a side as it is kept for the augmentation, at `stored_size` where there is one.

        Raises:
            FlowersError: one of its photos could not be read again at that size.
        """
        photos = self.train_photos if side == TRAIN else self.val_photos
        return photos if self._stored is None else photos.of_size(self._stored, self._sides().paths(side))

    def _sides(self) -> SplitPhotos:
        if self._split is None:
            raise RuntimeError("the photos are not split yet; call setup('fit') first")
        return self._split

    def train_dataloader(self) -> PrefetchLoader:
        """Load the training side, shuffled and augmented differently each epoch."""
        photos = self.kept_photos(TRAIN)
        return self._preparation.shuffled(photos, self.batch_size, self.workers, self.seed, self.balance)

    def val_dataloader(self) -> PrefetchLoader:
        """Load the validation side, not augmented, in the order of its paths."""
        if not (self._preparation.fitting() and self.all_of is None):
            return self._preparation.in_order(self.val_photos, 2 * self.batch_size, self.workers)
        features = self._preparation.cache_features(self.val_photos, self.cache_dir)
        reading = order_by_shards(features)
        sampler = BatchSampler(len(features), 2 * self.batch_size, *self._preparation.rank(), reading=reading)
        return self._preparation.loader(features, sampler, self.workers)

    def test_dataloader(self) -> PrefetchLoader:
        """Load all photos of `test_root`, or the validation side."""
        return self.val_dataloader() if self.test_root is None else self.predict_dataloader()

    def predict_dataloader(self) -> PrefetchLoader:
        """Load photos from their files, in the order of their paths."""
        if self._files is None:
            raise RuntimeError("there is nothing to predict yet; call setup('predict') first")
        return self._preparation.in_order(self._files, 2 * self.batch_size, self.workers, self.num_predicted)

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
        return {"root": address_of(self.root), **{name: getattr(self, name) for name in SETTINGS}}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the soft labels."""
        return dict(self.soft_labels.state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Log whether the soft labels have changed since a checkpoint was saved."""
        self.soft_labels.report_change(state_dict)

"""Photos kept larger than the input, and the weak epochs of a stage, from the files to the weights."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from comparing import assert_same_runs
from interrupting import Circumstances, fit

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch, CachedPhotos
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import load_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.folder import TRAIN, UNREADABLE, VAL, LeftOut
from flowers_pl.data.preparation import Preparation
from flowers_pl.data.ranges import Augmentation
from flowers_pl.training.checkpoint_files import read_checkpoint

STRONG = Augmentation(crop=0.35, contrast=0.2, saturation=0.2, weak_epochs=1)
RECIPE: dict[str, Any] = {
    "data": {
        "image_size": 32,
        "stored_size": 48,
        "batch_size": 8,
        "workers": 0,
        "augmentation": {"crop": 0.35, "contrast": 0.2, "saturation": 0.2, "weak_epochs": 1},
    },
    "model": {"weights": None},
    "unfreeze": {"head_epochs": 3, "top_epochs": 2},
    "export": "none",
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32", "enable_progress_bar": False},
}


def module(drawings: Path, stored: int | None = 48, **options: Any) -> FlowersDataModule:
    data = FlowersDataModule(
        root=str(drawings), image_size=32, stored_size=stored, batch_size=8, workers=0, **options
    )
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data: FlowersDataModule) -> list[Batch]:
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def test_training_photos_are_those_of_their_files_at_the_stored_size(drawings: Path) -> None:
    data = module(drawings)
    training = [one for one in data.placed if one.side == TRAIN]
    loader = data.train_dataloader()
    for key in loader.keys:
        batch = loader.dataset[key]
        for photo, row, label in zip(batch.photos, batch.rows.tolist(), batch.labels.tolist(), strict=True):
            assert torch.equal(photo, load_photo(drawings / training[row].path, 48))
            assert data.classes[label] == training[row].label
    for batch in batches(data):
        assert batch.photos.shape[1:] == (3, 32, 32)


def test_validation_does_not_depend_on_the_stored_size(drawings: Path) -> None:
    with_, without = module(drawings, augmentation=STRONG), module(drawings, stored=None)
    assert with_.placed == without.placed
    for one, other in zip(with_.val_dataloader(), without.val_dataloader(), strict=True):
        assert torch.equal(one.photos, other.photos)
    everything = np.arange(len(without.train_photos))  # what batch norm and novelty are measured on
    assert torch.equal(with_.train_photos.read(everything), without.train_photos.read(everything))
    assert with_.settings() == without.settings()


def test_the_image_size_as_stored_size_changes_nothing(drawings: Path) -> None:
    for one, other in zip(*(batches(module(drawings, stored=size)) for size in (None, 32)), strict=True):
        assert torch.equal(one.photos, other.photos)


@pytest.mark.parametrize("augmentation", [STRONG, Augmentation()])  # without a crop the matrix scales
def test_photos_are_the_same_without_a_cache_and_with_threads(
    drawings: Path, augmentation: Augmentation
) -> None:
    kept, read, threads = (
        module(drawings, augmentation=augmentation, **options)
        for options in ({}, {"cache": False}, {"cache": True})
    )
    threads.workers = 3
    for one, *others in zip(batches(kept), batches(read), batches(threads), strict=True):
        for other in others:
            for name in ("photos", "labels", "rows", "draws", "keys"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            assert one.epoch == other.epoch == 0


def test_a_photo_that_cannot_be_read_again_is_named(drawings: Path) -> None:
    data = module(drawings)
    assert data._stored is not None
    path = next(one.path for one in data.placed if one.side == TRAIN)
    left_out = [LeftOut(path, "truncated JPEG", UNREADABLE)]
    data._stored = replace(data._stored.without({path}), left_out=left_out)
    with pytest.raises(FlowersError, match=rf"{path}.*could be read once but not again \(truncated JPEG\)"):
        data.train_dataloader()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("first", [None, 48])
def test_each_size_has_a_history_of_its_own(
    drawings: Path, tmp_path: Path, first: int | None, cache: bool
) -> None:
    """Photos come and go between the runs that build the caches of the two sizes."""
    root = Path(shutil.copytree(drawings, tmp_path / "photos"))
    if first is None:
        module(root, stored=None, cache=cache)
    else:
        data = FlowersDataModule(root=str(root), image_size=first, workers=0, cache=cache)
        data.prepare_data()
    one, *_, last = sorted((root / "daisy").iterdir())
    shutil.copy(one, root / "daisy" / "0000_a_copy.png")
    (root / "daisy" / "0001.png").write_bytes(last.read_bytes()[:-20] + b"another")
    draw_flower("tulip", 99, 50).save(root / "rose" / "0000.png")
    one.unlink()
    data = module(root, cache=cache)
    for side in (TRAIN, VAL):
        placed = [photo for photo in data.placed if photo.side == side]
        for photos, size in ((data.kept_photos(side), 48), (_side(data, side), 32)):
            read = photos.read(np.arange(len(placed)))
            for photo, pixels in zip(placed, read, strict=True):
                assert torch.equal(pixels, load_photo(root / photo.path, size)), (photo, size)


def _side(data: FlowersDataModule, side: str) -> CachedPhotos:
    return data.train_photos if side == TRAIN else data.val_photos


def test_a_stored_size_below_the_image_size_is_refused() -> None:
    with pytest.raises(FlowersError, match=r"--data.stored_size must be at least --data.image_size \(160\)"):
        FlowersDataModule(stored_size=128)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Path:
    """A working folder with the settings of a run, whose photos are decoded already."""
    module(drawings)
    folder = tmp_path_factory.mktemp("strong")
    settings = RECIPE | {"data": {**RECIPE["data"], "root": str(drawings)}}
    (folder / "strong.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ends_early", [False, True])
def test_the_last_epochs_of_each_stage_are_weak(
    home: Path, monkeypatch: pytest.MonkeyPatch, ends_early: bool
) -> None:
    """Those of stage 2 are counted from its own first epoch; a stage that ends early has none."""
    seen: dict[int, set[Augmentation]] = {}
    ranges = Preparation.ranges

    def noting(self: Preparation, epoch: int) -> Augmentation:
        found = ranges(self, epoch)
        seen.setdefault(epoch, set()).add(found)
        return found

    monkeypatch.setattr(Preparation, "ranges", noting)
    monkeypatch.chdir(home)
    still = ["--model.head_lr", "1e-30", "--model.dropout", "0", "--early_stopping.patience", "1"]
    patient = ["--early_stopping.patience", "9"]
    name = f"early{ends_early}"
    options = ["--config", "strong.yaml", "--run_name", name, "--data.workers", "2"]
    assert main(["fit", *options, *(still if ends_early else patient)]) == 0
    weak = {epoch for epoch, found in seen.items() if found == {STRONG.weakened()}}
    strong = {epoch for epoch, found in seen.items() if found == {STRONG}}
    assert (strong, weak) == (({0, 1, 2}, {3}) if ends_early else ({0, 1, 3}, {2, 4}))


def test_weak_photos_are_as_in_validation_but_for_crop_flip_and_colours() -> None:
    weak = replace(STRONG, crop=0.9).weakened()
    assert (weak.rotation, weak.shift, weak.zoom) == (0, 0, 0)
    assert (weak.crop, STRONG.weakened().crop) == (0.9, 0.8)
    assert (weak.flip, weak.brightness, weak.contrast, weak.saturation) == (True, 0.2, 0.2, 0.2)
    assert Augmentation(weak_epochs=3).weakened().crop == 1


@pytest.mark.release
def test_a_killed_run_goes_on_as_if_never_stopped(home: Path) -> None:
    """Killed inside the weak last epoch of stage 2, and saved inside the epochs too."""
    args = ["--config", "strong.yaml", "--save_every_n_steps", "2", "--run_name"]
    noted = home / "moments.txt"
    code, said = fit([*args, "whole"], home, Circumstances(noted=noted))
    assert code == 0, said
    starts = [at for at, name in enumerate(noted.read_text().splitlines()) if name == "on_train_batch_start"]
    assert len(starts) == 5 * 5
    code, said = fit([*args, "part"], home, Circumstances({starts[-2]: signal.SIGKILL}))
    assert code == -signal.SIGKILL, said
    saved = read_checkpoint(home / "checkpoints" / "part" / "last.ckpt")
    assert (saved["epoch"], saved["global_step"]) == (4, 22)
    code, said = fit(["--ckpt_path", "checkpoints/part/last.ckpt"], home)
    assert code == 0, said
    assert "Changed for this resume" not in said
    assert_same_runs(home / "checkpoints" / "whole", home / "checkpoints" / "part")

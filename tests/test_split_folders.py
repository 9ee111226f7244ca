"""A root with train/, val/ and test/, each with the class folders in it: these are the split."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.folder import TRAIN, VAL, split_folders
from flowers_pl.data.split import Placed, write_split

SMALL = ["--data.image_size=32", "--data.batch_size=4", "--data.workers=0", "--model.weights=null"]
SHORT = ["--unfreeze.head_epochs=1", "--unfreeze.top_epochs=0", "--trainer.accelerator=cpu", "--export=none"]


def draw(root: Path, counts: dict[str, int]) -> Path:
    """Write drawings into folders such as "train/rose", no two of them the same."""
    for start, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            drawing = draw_flower(Path(folder).name, 100 * start + number, 40)
            drawing.save(root / folder / f"{number}.png")
    return root


def split(root: Path, **options: object) -> FlowersDataModule:
    data = FlowersDataModule(
        str(root),
        image_size=32,
        workers=0,
        cache_dir=str(root.parent / "cache"),
        **options,  # type: ignore[arg-type]
    )
    data.prepare_data()
    data.setup("fit")
    return data


def side_of(data: FlowersDataModule) -> dict[str, str]:
    return {photo.path: photo.side for photo in data.placed}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in train, val and test."""
    counts = {"train": 4, "val": 2, "test": 2}
    return draw(
        tmp_path / "root", {f"{side}/{kind}": counts[side] for side in counts for kind in ("rose", "tulip")}
    )


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "validation", "testing")],
)
def test_folders_of_a_split_are_the_split(
    root: Path, caplog: pytest.LogCaptureFixture, train: str, val: str, test: str
) -> None:
    for before, after in (("train", train), ("val", val), ("test", test)):
        (root / before).rename(root / after)
    with caplog.at_level(logging.INFO):
        data = split(root)
    assert data.classes == ["rose", "tulip"]
    expected = {f"{train}/rose/{n}.png": TRAIN for n in range(4)} | {
        f"{val}/rose/{n}.png": VAL for n in range(2)
    }
    assert side_of(data) == expected | {
        path.replace("rose", "tulip"): side for path, side in expected.items()
    }
    assert [photo.path.split("/")[0] for photo in data.reported_photos] == [val] * 4
    assert f"its folders are used as the split: {', '.join(sorted((train, val, test)))}." in caplog.text
    data.setup("test")
    assert data.test_root == str(root / test)
    assert data.reported_photos[0].path == "rose/0.png"


def test_without_val_it_is_drawn_from_train(root: Path) -> None:
    shutil.rmtree(root / "val")
    sides = side_of(split(root, val_fraction=0.25))
    assert all(path.startswith("train/") for path in sides)
    assert [list(sides.values()).count(side) for side in (TRAIN, VAL)] == [6, 2]


def test_duplicates_that_cross_sides_leave_train_and_are_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(root / "val/rose/0.png", root / "train/rose/a.png")
    shutil.copy(root / "test/tulip/0.png", root / "train/tulip/b.png")
    shutil.copy(root / "val/tulip/1.png", root / "train/rose/c.png")
    shutil.copy(root / "train/rose/1.png", root / "train/tulip/d.png")
    with caplog.at_level(logging.WARNING):
        data = split(root)
    assert {entry.path: entry.reason for entry in data.left_out} == {
        "train/rose/a.png": "is on another side of the split too: val/rose/0.png",
        "train/tulip/b.png": "is on another side of the split too: test/tulip/0.png",
        "train/rose/c.png": "is on another side of the split too: val/tulip/1.png",
        "train/rose/1.png": "stands under another class too: train/tulip/d.png",
        "train/tulip/d.png": "stands under another class too: train/rose/1.png",
    }
    assert "Left out: train/rose/a.png is on another side" in caplog.text
    assert {path for path, side in side_of(data).items() if side == VAL} == {
        f"val/{kind}/{number}.png" for kind in ("rose", "tulip") for number in range(2)
    }


def test_a_given_split_wins(root: Path, tmp_path: Path) -> None:
    sides = side_of(split(root, split="notebook"))
    assert sides["train/rose/0.png"] == VAL  # the first file name of the class
    assert not any(path.startswith("test/") for path in sides)
    rows = [Placed(f"val/{kind}/0.png", kind, TRAIN, "") for kind in ("rose", "tulip")]
    rows += [Placed(f"train/{kind}/0.png", kind, VAL, "") for kind in ("rose", "tulip")]
    write_split(tmp_path / "split.csv", rows)
    assert sorted(split(root, split=str(tmp_path / "split.csv")).placed) == sorted(rows)


@pytest.mark.parametrize(
    "counts",
    [
        {"train/rose": 2, "val/rose": 2, "extra/rose": 2},
        {"val/rose": 2, "test/rose": 2},
        {"train": 2, "test": 2},
    ],
)
def test_other_folders_are_classes(tmp_path: Path, counts: dict[str, int]) -> None:
    counts = {folder.replace("rose", "tulip"): count for folder, count in counts.items()}
    for folder, count in counts.items():
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            draw_flower("rose", number, 40).save(tmp_path / folder / f"{number}.png")
    assert split_folders(tmp_path) == {}


def test_a_side_of_photos_alone_is_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(root / "test/rose")
    (root / "test/tulip/0.png").rename(root / "test/0.png")
    with caplog.at_level(logging.WARNING):
        assert split_folders(root) == {}
    assert "test does not hold class folders alone" in caplog.text


def test_a_class_on_one_side_only(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(root / "val/rose")
    with caplog.at_level(logging.WARNING):
        assert split(root).classes == ["rose", "tulip"]
    assert "Classes without a photo to validate with: rose;" in caplog.text
    (root / "val/daisy").mkdir()
    with pytest.raises(FlowersError, match=r"class folder '.*val/daisy' is empty"):
        split(root)
    draw(root, {"val/daisy": 2})
    with pytest.raises(FlowersError, match="'daisy' has no photo on the side 'train'; put photos of it"):
        split(root)


def test_a_class_of_one_photo_is_split_again_by_the_runs_list(root: Path) -> None:
    """`validate` and `test` of a run take its split.csv in place of the folders."""
    shutil.rmtree(root / "val/rose")
    for number in (1, 2, 3):
        (root / f"train/rose/{number}.png").unlink()
    placed = split(root).placed
    write_split(root.parent / "split.csv", placed)
    assert split(root, split=str(root.parent / "split.csv")).placed == placed


@pytest.mark.slow
def test_fit_test_and_audit_of_such_a_root(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "val/rose/0.png", root / "train/rose/a.png")
    assert main(["fit", f"--data.root={root}", "--run_name=run", *SMALL, *SHORT]) == 0
    assert "val/rose/0.png,rose,val," in (tmp_path / "checkpoints/run/split.csv").read_text()
    assert main(["test", "--data.workers=0"]) == 0
    tested = json.loads((tmp_path / "checkpoints/run/test.json").read_text())
    assert tested["judged"].endswith(os.path.join("root", "test"))
    assert main(["audit", f"--data.root={root}", "--model.weights=null", "--data.workers=0"]) == 0
    report = (tmp_path / "audit/audit.txt").read_text()
    assert "17 files in 2 class folders" in report
    assert "folders 1" in report

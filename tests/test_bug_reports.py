"""Public bug reports of other projects, tried on this one; docs/bug_reports.md lists them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from flowers_pl.cli.app import main
from flowers_pl.cli.fit_options import parser
from flowers_pl.core.names import BEST, CARD, METRICS, PREDICTIONS, RUNS, TEST_JSON
from flowers_pl.data.decoding import read_photo
from flowers_pl.data.drawings import draw_flower

FIT = [
    *(
        "fit",
        "--data.root",
        "photos",
        "--data.image_size",
        "32",
        "--data.workers",
        "0",
        "--data.batch_size",
        "4",
    ),
    *("--model.weights", "null", "--export", "none", "--trainer.enable_progress_bar", "false"),
    *("--trainer.precision", "32"),
]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("rose", "daisy"):
        for seed in range(8):
            file = Path("photos", kind, f"{seed}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            draw_flower(kind, seed, 48).save(file)


@pytest.fixture
def best(photos: None) -> str:
    stages = ["--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "0"]
    assert main([*FIT, "--run_name", "run", *stages]) == 0
    return str(RUNS / "run" / BEST)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("2", 2), ("1.0", 1.0), ("0.5", 0.5)])
@pytest.mark.parametrize("option", ["overfit_batches", "limit_train_batches", "limit_predict_batches"])
def test_one_batch_is_not_all_batches(option: str, text: str, number: float) -> None:
    """Lightning-AI/pytorch-lightning#2943: `--overfit_batches 1` became 1.0, all batches."""
    settings = parser().parse([f"--trainer.{option}", text])
    assert repr(settings.trainer[option]) == repr(number)


def test_overfit_batches_shows_the_same_photos_in_each_epoch(photos: None) -> None:
    """Lightning-AI/pytorch-lightning#10457: with a sampler of one's own each epoch had another batch."""
    stages = ["--unfreeze.head_epochs", "5", "--unfreeze.top_epochs", "0", "--model.head_lr", "0.02"]
    assert main([*FIT, "--run_name", "over", "--trainer.overfit_batches", "1", *stages]) == 0
    with (RUNS / "over" / METRICS).open() as stream:
        losses = [float(row["train_loss"]) for row in csv.DictReader(stream)]
    assert losses[-1] < 0.05
    assert losses == sorted(losses, reverse=True)


def test_a_share_of_less_than_a_batch_is_refused(photos: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning-AI/pytorch-lightning#1903: nothing was trained, and nothing was said."""
    assert main([*FIT, "--run_name", "none", "--trainer.limit_train_batches", "0.01"]) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flowers_pl: ")]
    assert "--trainer.limit_train_batches" in sentence
    assert not Path(RUNS, "none").exists()


@pytest.mark.slow
def test_what_evaluates_nothing_says_so(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning-AI/pytorch-lightning#21553: what a run does that is given no batch to validate with."""
    for command, more in (("validate", []), ("test", []), ("predict", ["--data.predict_root", "photos"])):
        limit = f"--trainer.limit_{ {'validate': 'val'}.get(command, command) }_batches"
        assert main([command, "--ckpt_path", best, *more, limit, "0"]) == 1
        assert "Nothing was evaluated" in capsys.readouterr().err
        assert main([command, "--ckpt_path", best, *more, limit, "0.01"]) == 1
        assert f"flowers_pl: {limit}: " in capsys.readouterr().err


def test_a_report_on_a_part_of_the_photos_counts_that_part(
    best: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--ckpt_path", best, "--data.batch_size", "1"]
    assert main(["test", *few, "--trainer.limit_test_batches", "1"]) == 0
    assert json.loads((RUNS / "run" / TEST_JSON).read_text())["photos"] == 2
    assert len((RUNS / "run" / PREDICTIONS).read_text().splitlines()) == 3
    assert main(["validate", *few, "--trainer.limit_val_batches", "1"]) == 0
    assert "Only a part" in capsys.readouterr().out


@pytest.mark.slow
def test_a_card_has_no_figures_of_a_part_of_the_photos(
    photos: None, caplog: pytest.LogCaptureFixture
) -> None:
    few = ["--data.batch_size", "1", "--trainer.limit_val_batches", "1", "--export", "torch"]
    assert main([*FIT, "--run_name", "run", "--unfreeze.head_epochs", "1", *few]) == 0
    assert "Only a part of them was evaluated" in caplog.text
    assert "Not measured yet" in (RUNS / "run" / CARD).read_text()


def test_an_exif_block_whose_header_is_doubled_still_turns_the_photo(tmp_path: Path) -> None:
    """python-pillow/Pillow#8348."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (40, 30))
    picture.save(tmp_path / "double.jpg", exif=b"Exif\0\0" + exif.tobytes())
    assert read_photo(tmp_path / "double.jpg").shape == (3, 40, 30)
    picture.save(tmp_path / "broken.jpg", exif=b"Exif\0\0broken")
    assert read_photo(tmp_path / "broken.jpg").shape == (3, 30, 40)

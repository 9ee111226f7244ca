"""`fit --refit`: as long as the run that it repeats, on the photos of both sides, and honest about it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from comparing import assert_same_runs
from jsonargparse import Namespace

from flowers_pl.cli.app import main
from flowers_pl.cli.refit import forget_identity
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import CONFIG, KEY
from flowers_pl.data.split import HEADER
from flowers_pl.export.load import Exported
from flowers_pl.runs.folder import rows_of, split_of
from flowers_pl.runs.judgement import results_of
from flowers_pl.runs.refit import read_refit
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.resume import read_settings
from flowers_pl.training.schedule import rate_factor
from flowers_pl.training.weight_average import AVERAGE

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false"]
SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "batch_size": 8, "workers": 0, "val_fraction": 0.4},
    "model": {"weights": None, "calibrate": True},
    "unfreeze": {"head_epochs": 3, "top_epochs": 2},
    "export": "none",
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32", "enable_progress_bar": False},
}
RUN, REFIT = Path("checkpoints/run"), Path("checkpoints/run-refit")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Path]:
    """A working folder with photos of its own, a run and its refit."""
    folder = tmp_path_factory.mktemp("refit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        shutil.copytree(drawings, folder / "photos")
        settings = SMALL | {"data": {**SMALL["data"], "root": str(folder / "photos")}}
        (folder / "small.yaml").write_text(yaml.safe_dump(settings))
        assert main(["fit", "--config", "small.yaml", "--run_name", "run"]) == 0
        assert main(["test", "--ckpt_path", str(RUN / "best.ckpt"), *CPU]) == 0
        assert main(["fit", "--refit", str(RUN), "--export", "torch"]) == 0
        yield folder


def said_by(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command line is refused with."""
    capsys.readouterr()
    assert main(args) == 1
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    assert said.count("\n") == 0, said
    return said


# ---------------------------------------------------------------- what is trained, and for how long


def kept_epochs(run: Path) -> tuple[int, int]:
    """Epochs of each stage up to the best one, by a plain look at metrics.csv."""
    rows = read_table(run / "metrics.csv")
    best = read_checkpoint(run / "best.ckpt")["epoch"]
    head = [row["val_loss"] for row in rows if row["stage"] == 1]
    if best < len(head):
        return best + 1, 0
    return int(np.argmin(head)) + 1, best + 1 - len(head)


@pytest.mark.slow
def test_each_stage_has_the_epochs_that_the_run_kept(home: Path) -> None:
    stages = [row["stage"] for row in read_table(REFIT / "metrics.csv")]
    assert (stages.count(1), stages.count(2)) == kept_epochs(RUN)


@pytest.mark.parametrize(
    ("losses", "best", "expected"),
    [
        ([3.0, 2.0, 2.5, 1.9, 1.5, 1.6], 4, (2, 2)),
        ([3.0, 2.0, 2.0, 1.9, 1.5, 1.4], 5, (2, 3)),  # of equal losses the first
        ([3.0, 2.0, 2.5, 2.9, 2.8, 2.7], 1, (2, 0)),  # no epoch of stage 2 was better
    ],
)
def test_the_epochs_are_read_from_the_run(
    losses: list[float], best: int, expected: tuple[int, int], home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "other"
    shutil.copytree(RUN, run)
    checkpoint = read_checkpoint(run / "best.ckpt")
    checkpoint["epoch"] = best
    checkpoint[KEY]["stage"] |= (
        {"number": 2, "first_epoch": 3} if best > 2 else {"number": 1, "first_epoch": 0}
    )
    torch.save(checkpoint, run / "best.ckpt")
    table = [f"{epoch},{1 + (epoch > 2)},{loss}" for epoch, loss in enumerate(losses)]
    (run / "metrics.csv").write_text("\n".join(["epoch,stage,val_loss", *table]) + "\n")
    found = read_refit(run)
    assert (found.head_epochs, found.top_epochs) == expected
    (run / "metrics.csv").unlink()
    if best > 2:
        with pytest.raises(FlowersError, match="does not have all epochs of stage 1"):
            read_refit(run)
    checkpoint[KEY]["stage"]["chooses"] = False  # as with a cosine, whose last epochs are kept
    torch.save(checkpoint, run / "best.ckpt")
    assert read_refit(run).head_epochs == (3 if best > 2 else 2)


def test_the_photos_of_both_sides_are_trained_on_and_nothing_validates(home: Path) -> None:
    before, after = split_of(RUN / "best.ckpt"), split_of(REFIT / "best.ckpt")
    assert {photo.side for photo in before} == {"train", "val"}
    assert {photo.side for photo in after} == {"train"}
    assert [photo.path for photo in after] == [photo.path for photo in before]
    steps = sum(kept_epochs(RUN)) * -(-len(after) // 8)
    checkpoint = read_checkpoint(REFIT / "best.ckpt")
    assert checkpoint["global_step"] == steps
    assert not any("val" in name for row in read_table(REFIT / "metrics.csv") for name in row)


def test_the_last_state_is_the_best_one_and_says_what_it_is_of(home: Path) -> None:
    best, last, run = (
        read_checkpoint(file) for file in (REFIT / "best.ckpt", REFIT / "last.ckpt", RUN / "best.ckpt")
    )
    assert all(torch.equal(best["state_dict"][name], last["state_dict"][name]) for name in last["state_dict"])
    assert best[KEY]["refit_of"]["run"] == "run"
    assert best[KEY]["refit_of"]["sha256"] == hashlib.sha256((RUN / "best.ckpt").read_bytes()).hexdigest()
    assert best[KEY]["temperature"] == run[KEY]["temperature"] is not None
    assert best[KEY]["unlike"]["limit"] == run[KEY]["unlike"]["limit"]
    assert not torch.equal(best[KEY]["unlike"]["axes"], run[KEY]["unlike"]["axes"])  # of its own features
    assert run[KEY]["refit_of"] is None
    assert best[KEY]["stage"]["number"] == 2
    trained = best[AVERAGE]["trained"]  # the average is what is kept
    assert not all(torch.equal(best["state_dict"][name], trained[name]) for name in trained)


# ---------------------------------------------------------------- what is said of it


def test_the_card_has_the_figures_of_the_run_and_says_so(home: Path) -> None:
    card, report = (REFIT / "MODEL_CARD.md").read_text(), json.loads((RUN / "test.json").read_text())
    assert "These are the figures of the run `run`" in card
    assert f"| accuracy | {report['accuracy']:.4f} |" in card
    assert "The model was trained on all of them." in card
    assert "validation images of the other run" in card
    exported, found = Exported.open(REFIT / "final.pt2"), FlowerClassifier.load(REFIT / "best.ckpt")
    assert exported.classes == found.classes
    assert "of 50 training images" in card
    results = results_of(RUN / "best.ckpt")
    assert results is not None
    assert not {"checkpoint", "step", "model"} & set(results)  # a path, and what the file says beside them


@pytest.mark.slow
def test_it_is_judged_on_other_photos_only(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--ckpt_path", str(REFIT / "best.ckpt"), *CPU]
    assert "--data.test_root is missing" in said_by(["test", *given], capsys)
    assert "the run 'run' was validated" in said_by(["validate", *given], capsys)
    assert not (REFIT / "test.json").exists()
    before = (REFIT / "MODEL_CARD.md").read_text()
    assert main(["test", *given, "--data.test_root", "photos"]) == 0
    card = (REFIT / "MODEL_CARD.md").read_text()
    assert "images of photos" in card
    assert "These are the figures of the run" not in card
    (REFIT / "MODEL_CARD.md").write_text(before)
    (REFIT / "test.json").unlink()


@pytest.mark.slow
def test_its_other_uses_work(home: Path) -> None:
    given = ["--ckpt_path", str(REFIT / "best.ckpt")]
    assert main(["predict", *given, "--data.predict_root", "photos/rose", *CPU]) == 0
    assert {row["error"] for row in rows_of(REFIT / "predictions.csv", ["error"])} == {""}
    assert main(["explain", *given, "--most", "5"]) == 0
    assert main(["export", *given]) == 0
    assert "These are the figures of the run" in (REFIT / "MODEL_CARD.md").read_text()
    split = str(REFIT / "split.csv")
    audit = ["audit", "--data.root", "photos", "--model.weights", "null", "--data.split", split]
    assert main([*audit, "--data.image_size", "32"]) == 0


# ---------------------------------------------------------------- resume


@pytest.mark.slow
@pytest.mark.parametrize("inside", [pytest.param(False, marks=pytest.mark.release), True])
def test_it_resumes_as_any_run_also_without_the_run_that_it_repeats(home: Path, inside: bool) -> None:
    part, away = Path("checkpoints/part"), Path("away")
    stop = ["--trainer.max_steps", "10"] if inside else ["--trainer.max_epochs", "1"]
    assert main(["fit", "--refit", str(RUN), "--run_name", "part", *stop]) == 0
    assert len(read_table(part / "metrics.csv")) < sum(kept_epochs(RUN))
    RUN.rename(away)
    try:
        go_on = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "-1"]
        assert main(["fit", "--ckpt_path", str(part / "last.ckpt"), *go_on]) == 0
        assert_same_runs(REFIT, part)
        assert main(["fit", "--ckpt_path", str(part / "last.ckpt")]) == 0
    finally:
        away.rename(RUN)
        shutil.rmtree(part)


@pytest.mark.slow
def test_the_strong_recipes_schedule_runs_to_its_end(home: Path) -> None:
    cosine = ["--model.schedule", "cosine", "--model.warmup", "0.2", "--unfreeze.head_epochs", "1"]
    assert main(["fit", "--config", "small.yaml", "--run_name", "cosine", *cosine]) == 0
    assert main(["fit", "--refit", "checkpoints/cosine"]) == 0
    rows = read_table("checkpoints/cosine-refit/metrics.csv")
    assert [row["stage"] for row in rows] == [1, 2, 2]
    lengths = {1: 7, 2: 14}  # steps: 50 photos in batches of 8
    last = [rate * rate_factor(lengths[stage] - 1, lengths[stage], 0.2, "cosine") for stage, rate in
            ((1, 1e-3), (2, 1e-4))]  # fmt: skip
    assert [rows[0]["lr_head"], rows[2]["lr_head"]] == pytest.approx(last, rel=1e-5)


def test_a_name_in_a_file_of_settings_is_the_refits(home: Path) -> None:
    for name, args, expected in (
        ("run", [], None),  # of the run's own settings
        ("mine", [], "mine"),
        ("run", ["--run_name", "run"], "run"),
    ):
        settings = Namespace(ckpt_path=None, run_name=name, trainer=read_settings(RUN / CONFIG)["trainer"])
        forget_identity(settings, RUN, args)
        assert settings.run_name == expected


def test_limits_of_the_run_are_not_those_of_the_refit(home: Path, tmp_path: Path) -> None:
    limits = {"max_time": "00:00:30:00", "max_steps": 700}
    own = read_settings(RUN / CONFIG)
    (tmp_path / CONFIG).write_text(yaml.safe_dump(own | {"trainer": own["trainer"] | limits}))
    for args, expected in (
        ([], {"max_time": None, "max_steps": -1}),
        (["--trainer.max_steps", "700"], {"max_time": None, "max_steps": 700}),
    ):
        settings = Namespace(ckpt_path=None, run_name="run", trainer=dict(limits))
        forget_identity(settings, tmp_path, args)
        assert settings.trainer == expected


# ---------------------------------------------------------------- mistakes


def test_mistakes_are_one_sentence(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "is not the folder of a run" in said_by(["fit", "--refit", "nowhere"], capsys)
    assert "is not the folder of a run" in said_by(["fit", "--refit", str(RUN / "best.ckpt")], capsys)
    assert "is a refit itself" in said_by(["fit", "--refit", str(REFIT)], capsys)
    both = ["fit", "--refit", str(RUN), "--ckpt_path", str(RUN / "last.ckpt")]
    assert "give one of them" in said_by(both, capsys)
    flipped = ["fit", "--refit", str(RUN), "--model.flip_test", "true"]
    assert "--model.calibrate" in said_by(flipped, capsys)
    flipped = ["fit", "--ckpt_path", str(REFIT / "last.ckpt"), "--model.flip_test", "true"]
    assert "--model.calibrate" in said_by(flipped, capsys)
    for name, reason in (("best.ckpt", "has no best.ckpt"), ("split.csv", "has no split.csv")):
        shutil.copytree(RUN, tmp_path / name)
        (tmp_path / name / name).unlink()
        assert reason in said_by(["fit", "--refit", str(tmp_path / name)], capsys)
    early = Path(shutil.copytree(RUN, tmp_path / "early"))
    checkpoint = read_checkpoint(early / "best.ckpt")
    checkpoint[KEY]["unlike"] = None  # which a run gets when it ends
    torch.save(checkpoint, early / "best.ckpt")
    assert "has not ended" in said_by(["fit", "--refit", str(early)], capsys)
    decided = {"data.split_seed": "5", "data.exclude": "some.csv", "unfreeze.top_epochs": "9"}
    for name, value in decided.items():
        said = said_by(["fit", "--refit", str(RUN), f"--{name}", value], capsys)
        assert f"--{name}: a refit trains on the photos of its run" in said
    Path("of_another.yaml").write_text("ckpt_path: last.ckpt\n")
    said = said_by(["fit", "--refit", str(RUN), "--config", "of_another.yaml"], capsys)
    assert "--ckpt_path must be given on the command line" in said
    left = {folder.name for folder in Path("checkpoints").iterdir()}
    assert left <= {"run", "run-refit", "cosine", "cosine-refit"}


def test_a_photo_that_is_gone_is_one_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows_of(RUN / "split.csv", HEADER)[:1]
    photo = Path("photos", row["path"])
    photo.rename("hidden.png")
    try:
        said = said_by(["fit", "--refit", str(RUN)], capsys)
    finally:
        Path("hidden.png").rename(photo)
    assert row["path"] in said
    assert "split.csv" in said

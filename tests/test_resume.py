"""A run that was interrupted and resumed is the run that was not."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from comparing import assert_same_runs

from flowers_pl.cli.app import main
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_callback import RunCheckpoints
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.resume import epochs_after

SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "batch_size": 8, "workers": 0},
    "model": {"weights": None},
    "unfreeze": {"head_epochs": 2, "top_epochs": 2},
    "export": "none",
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32", "enable_progress_bar": False},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Path]:
    """A working folder with a run of four epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "small.yaml").write_text(
            yaml.safe_dump(SMALL | {"data": {**SMALL["data"], "root": str(drawings)}})
        )
        assert main(["fit", "--config", "small.yaml", "--run_name", "whole"]) == 0
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "epochs", [pytest.param(1, marks=pytest.mark.release), 2, pytest.param(3, marks=pytest.mark.release)]
)  # in stage 1, at the boundary, in stage 2
def test_a_resumed_run_ends_as_if_never_stopped(home: Path, epochs: int) -> None:
    run = home / "checkpoints" / "parts"
    stop = ["--trainer.max_epochs", str(epochs)]
    assert main(["fit", "--config", "small.yaml", "--run_name", "parts", *stop]) == 0
    assert len(read_table(run / "metrics.csv")) == epochs
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "-1"]) == 0
    assert_same_runs(home / "checkpoints" / "whole", run)
    shutil.rmtree(run)


@pytest.mark.slow
def test_stages_may_get_other_lengths_whenever_they_began(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stage 2 began after two epochs, whatever length stage 1 is given later."""
    run = home / "checkpoints" / "lengths"
    stop = ["--trainer.max_epochs", "3"]
    assert main(["fit", "--config", "small.yaml", "--run_name", "lengths", *stop]) == 0
    go_on = ["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "-1"]
    assert main([*go_on, "--unfreeze.head_epochs", "1"]) == 0
    assert [row["stage"] for row in read_table(run / "metrics.csv")] == [1, 1, 2, 2]
    with caplog.at_level("INFO", "flowers_pl"):
        assert main([*go_on, "--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "1"]) == 0
    assert "This run is finished" in caplog.text
    assert len(read_table(run / "metrics.csv")) == 4
    shutil.rmtree(run)


@pytest.mark.slow
def test_a_stage_that_has_trained_for_longer_than_is_now_asked_for_ends(home: Path) -> None:
    run = home / "checkpoints" / "shorter"
    stop = ["--unfreeze.head_epochs", "4", "--trainer.max_epochs", "3"]
    assert main(["fit", "--config", "small.yaml", "--run_name", "shorter", *stop]) == 0
    go_on = ["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "-1"]
    assert main([*go_on, "--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "1"]) == 0
    assert [row["stage"] for row in read_table(run / "metrics.csv")] == [1, 1, 1, 2]
    shutil.rmtree(run)


@pytest.mark.release
def test_a_run_in_float64_resumes_without_rounding_its_weights(home: Path) -> None:
    short = ["--trainer.precision", "64-true", "--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "1"]
    start = ["fit", "--config", "small.yaml", *short, "--run_name"]
    assert main([*start, "whole64"]) == 0
    assert main([*start, "parts64", "--trainer.max_epochs", "1"]) == 0
    runs = [home / "checkpoints" / name for name in ("whole64", "parts64")]
    assert main(["fit", "--ckpt_path", str(runs[1] / "last.ckpt"), "--trainer.max_epochs", "-1"]) == 0
    assert_same_runs(runs[0], runs[1])
    for run in runs:
        shutil.rmtree(run)


def test_a_finished_run_says_so_and_stays(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = home / "checkpoints" / "whole"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    with caplog.at_level("INFO", "flowers_pl"):
        assert main(["fit", "--ckpt_path", str(run / "last.ckpt")]) == 0
    assert "This run is finished" in caplog.text
    assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*")}


def test_a_longer_run_that_was_killed_before_its_end_is_concluded(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the shorter run ended with is there, but not of these weights."""
    run = home / "checkpoints" / "longer"
    shutil.copytree(home / "checkpoints" / "whole", run)
    curves = run / "plots" / "training_curves.png"
    before = curves.stat().st_mtime_ns
    (run / "config.yaml").touch()  # as the longer training began
    with caplog.at_level("INFO", "flowers_pl"):
        assert main(["fit", "--ckpt_path", str(run / "last.ckpt")]) == 0
    assert not [one for one in caplog.messages if one.startswith("This run is finished; its results")]
    assert curves.stat().st_mtime_ns > before
    shutil.rmtree(run)


def test_other_layers_are_refused_once_they_train(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = home / "checkpoints" / "whole" / "last.ckpt"
    more = ["--unfreeze.layers", "60", "--unfreeze.top_epochs", "3"]
    assert main(["fit", "--ckpt_path", str(last), *more]) == 1
    assert "stage 2 of this run trains 30 layers, not 60" in capsys.readouterr().err


def test_settings_that_a_run_did_not_have_yet_are_not_changed(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run of a version before these settings is finished, too; they are named once they are given."""
    run = home / "checkpoints" / "before"
    shutil.copytree(home / "checkpoints" / "whole", run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    del settings["data"]["stored_size"], settings["data"]["augmentation"]["crop"]
    written = (run / "config.yaml").stat().st_mtime_ns
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    os.utime(run / "config.yaml", ns=(written, written))
    with caplog.at_level("INFO", "flowers_pl"):
        assert main(["fit", "--ckpt_path", str(run / "last.ckpt")]) == 0
        assert [one for one in caplog.messages if one.startswith("This run is finished; its results")]
        assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--data.augmentation.crop", "0.5"]) == 0
    changes = [message for message in caplog.messages if message.startswith("Changed")]
    assert changes == ["Changed for this resume: --data.augmentation.crop from 1.0 to 0.5."]
    shutil.rmtree(run)


@pytest.mark.release
@pytest.mark.parametrize(
    ("less", "more"),
    [
        (["--unfreeze.top_epochs", "1"], ["--unfreeze.top_epochs", "2"]),
        (["--unfreeze.top_epochs", "0"], ["--unfreeze.top_epochs", "2"]),  # stage 1 was the last one
        (["--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "0"], ["--unfreeze.head_epochs", "2",
                                                                         "--unfreeze.top_epochs", "2"]),
    ],
)  # fmt: skip
def test_a_finished_run_that_is_given_more_epochs_is_the_longer_run(
    home: Path, less: list[str], more: list[str]
) -> None:
    run = home / "checkpoints" / "longer"
    assert main(["fit", "--config", "small.yaml", "--run_name", "longer", *less]) == 0
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), *more]) == 0
    assert_same_runs(home / "checkpoints" / "whole", run)
    shutil.rmtree(run)


@pytest.mark.slow
def test_weak_epochs_that_would_no_longer_be_the_last_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = home / "checkpoints" / "weak"
    epochs = ["--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "1"]
    weak = ["--data.augmentation.crop", "0.5", "--data.augmentation.weak_epochs", "1"]
    assert main(["fit", "--config", "small.yaml", "--run_name", "weak", *epochs, *weak]) == 0
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--unfreeze.top_epochs", "2"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--unfreeze.top_epochs: this run follows a schedule over the length of its stage" in last
    assert len(read_table(run / "metrics.csv")) == 2
    shutil.rmtree(run)


def test_epochs_that_will_be_trained_anew_are_counted(home: Path) -> None:
    run = home / "checkpoints" / "whole"
    epochs = len(read_table(run / "metrics.csv"))
    assert epochs_after(run / "last.ckpt") == 0
    best = read_checkpoint(run / "best.ckpt")["epoch"] + 1
    assert epochs_after(run / "best.ckpt") == epochs - best


@pytest.mark.slow
def test_epochs_that_are_not_trained_anew_leave_the_table(home: Path) -> None:
    run = home / "checkpoints" / "back"
    fit = ["fit", "--config", "small.yaml", "--run_name", "back", "--trainer.max_epochs", "2"]
    assert main(fit) == 0
    shutil.copy(run / "last.ckpt", run / "early.ckpt")
    for file, epochs in (("last.ckpt", "4"), ("early.ckpt", "3")):
        assert main(["fit", "--ckpt_path", str(run / file), "--trainer.max_epochs", epochs]) == 0
        rows = read_table(run / "metrics.csv")
        assert [row["epoch"] for row in rows] == list(range(int(epochs)))
    shutil.rmtree(run)


@pytest.mark.slow
def test_a_stage_that_ended_early_goes_on_with_more_patience(home: Path) -> None:
    """It ends as the run that had this patience from the start; this learning rate makes the loss rise."""
    patient, hasty = (home / "checkpoints" / name for name in ("patient", "hasty"))
    rising = ["--model.head_lr", "0.5", "--unfreeze.head_epochs", "9", "--unfreeze.top_epochs", "0"]
    for run, patience in ((patient, "2"), (hasty, "1")):
        command = ["fit", "--config", "small.yaml", "--run_name", run.name, *rising]
        assert main([*command, "--early_stopping.patience", patience]) == 0
    early = len(read_table(hasty / "metrics.csv"))
    assert early < len(read_table(patient / "metrics.csv")) < 9
    resume = ["fit", "--ckpt_path", str(hasty / "last.ckpt")]
    assert main(resume) == 0
    assert len(read_table(hasty / "metrics.csv")) == early
    assert main([*resume, "--early_stopping.patience", "2"]) == 0
    assert_same_runs(patient, hasty)
    for run in (patient, hasty):
        shutil.rmtree(run)


@pytest.fixture
def middle(home: Path) -> Iterator[Path]:
    """A run stopped by SIGTERM in the middle of stage 2's first epoch: after 3 of its 5 batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCheckpoints, "on_train_batch_start", sends(signal.SIGTERM, step=12), raising=False)
        assert main(["fit", "--config", "small.yaml", "--run_name", "middle"]) == 143
    yield home / "checkpoints" / "middle"
    shutil.rmtree(home / "checkpoints" / "middle")


def sends(number: int, step: int) -> Callable[..., None]:
    """A hook that sends this process a signal when a step begins."""

    def hook(self: Any, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), number)

    return hook


@pytest.mark.release
def test_a_run_stopped_inside_an_epoch_goes_on_there(
    home: Path, middle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = read_checkpoint(middle / "last.ckpt")
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 13)
    assert read_checkpoint(middle / "best.ckpt")["epoch"] < 2
    with caplog.at_level("INFO", "flowers_pl"):
        assert main(["fit", "--ckpt_path", str(middle / "last.ckpt")]) == 0
    assert "Changed" not in caplog.text
    assert_same_runs(home / "checkpoints" / "whole", middle)


@pytest.mark.slow
def test_settings_that_change_are_named_and_win(
    home: Path, middle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resume = ["fit", "--ckpt_path", str(middle / "last.ckpt")]
    with caplog.at_level("INFO", "flowers_pl"):
        assert main([*resume, "--model.top_lr", "0.003", "--unfreeze.top_epochs", "1"]) == 0
    changes = [message for message in caplog.messages if message.startswith("Changed")]
    assert changes == [
        "Changed for this resume: --model.top_lr from 0.0001 to 0.003.",
        "Changed for this resume: --unfreeze.top_epochs from 2 to 1.",
    ]
    rows = read_table(middle / "metrics.csv")
    assert (rows[2]["lr_head"], rows[2]["lr_top"], len(rows)) == (0.003, 0.003, 3)
    groups = read_checkpoint(middle / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0.003, 0.003]
    assert yaml.safe_load((middle / "config.yaml").read_text())["model"]["top_lr"] == 0.003


def contents(folder: Path) -> dict[Path, bytes]:
    """The bytes of all files below a folder."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_resume_that_cannot_be_is_refused(
    home: Path, middle: Path, drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawings, home / "fewer", ignore=shutil.ignore_patterns("tulip"))
    before = contents(middle)
    for args, message in (
        (["--data.batch_size", "10"], "saved inside an epoch, whose photos, --data.batch_size,"),
        (["--seed_everything", "1"], "saved inside an epoch"),
        (["--data.root", "fewer"], "trained with classes"),
    ):
        assert main(["fit", "--ckpt_path", str(middle / "last.ckpt"), *args]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
        after = contents(middle)
        assert {file: after.get(file) for file in before} == before
        begun = after.keys() - before.keys()  # by TensorBoard, before the checkpoint is read
        assert all(file.name.startswith("events.out") for file in begun)

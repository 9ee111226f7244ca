"""Closed pipes, narrow encodings, paths with `~`, other loggers: as people run the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_cli import SMALL, failure

from flowers_pl import main
from flowers_pl.core.names import OWNER

RUN_0_1_0 = Path(__file__).parent / "data" / "run-0.1.0"
DRAWINGS = RUN_0_1_0 / "drawings"
PREDICT = [sys.executable, "-m", "flowers_pl", "predict", "--ckpt_path", str(RUN_0_1_0 / "best.ckpt")]


def predict(tmp_path: Path, photos: Path, **settings: object) -> subprocess.CompletedProcess[bytes]:
    command = [*PREDICT, "--data.predict_root", str(photos), "--out", "x.csv"]
    return subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, check=False, **settings)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
def test_predict_into_a_pipe_whose_reader_has_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = predict(tmp_path, DRAWINGS / "rose", stdout=writer)
    os.close(writer)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Broken" not in done.stderr
    assert (tmp_path / "x.csv").read_text().count("\n") == 13


@pytest.mark.release
def test_predict_with_standard_output_closed(tmp_path: Path) -> None:
    done = predict(tmp_path, DRAWINGS / "rose" / "rose_0000.png", preexec_fn=lambda: os.close(1))
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


@pytest.mark.slow
def test_names_that_the_screen_cannot_show_are_escaped_there_and_kept_in_files(tmp_path: Path) -> None:
    photo = tmp_path / "玫瑰.png"
    photo.write_bytes((DRAWINGS / "rose" / "rose_0000.png").read_bytes())
    done = predict(tmp_path, photo, stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr
    assert b"\\u73ab\\u7470.png" in done.stdout
    assert "玫瑰.png" in (tmp_path / "x.csv").read_text(encoding="utf-8")


def test_out_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    command = [
        "predict",
        "--ckpt_path",
        str(RUN_0_1_0 / "best.ckpt"),
        "--data.predict_root",
        str(DRAWINGS / "rose"),
    ]
    assert main([*command, "--out=~/tables/x.csv"]) == 0
    assert (tmp_path / "home" / "tables" / "x.csv").is_file()
    assert not (tmp_path / "~").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawings: Path) -> Path:
    """A working folder with a small configuration, whose root is below the home folder."""
    (tmp_path / "photos").symlink_to(drawings)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = {**SMALL, "data": {**SMALL["data"], "root": "~/photos"}}
    settings["unfreeze"] = {"head_epochs": 1, "top_epochs": 0}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.mark.slow
def test_a_root_below_the_home_folder_and_a_resume_from_another_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", "--config", "small.yaml", "--run_name", "a", "--export", "none"]) == 0
    config = yaml.safe_load((folder / "checkpoints" / "a" / "config.yaml").read_text())
    assert config["data"]["root"] == str(folder / "photos")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    last = folder / "checkpoints" / "a" / "last.ckpt"
    assert main(["fit", "--ckpt_path", str(last), "--unfreeze.head_epochs", "2"]) == 0
    assert not (folder / "checkpoints" / "a" / OWNER).exists()


def test_a_logger_of_the_users_own_is_added(folder: Path) -> None:
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "mine"]
    assert main(["fit", "--config", "small.yaml", "--run_name", "b", "--export", "none", *logger]) == 0
    assert list((folder / "mine").rglob("metrics.csv"))
    assert (folder / "checkpoints" / "b" / "metrics.csv").is_file()
    assert list((folder / "checkpoints" / "b").glob("events.out*"))


def test_no_tensorboard_where_no_logger_is_wanted(folder: Path) -> None:
    fit = ["fit", "--config", "small.yaml", "--run_name", "c", "--export", "none"]
    assert main([*fit, "--trainer.logger", "false"]) == 0
    run = folder / "checkpoints" / "c"
    assert not list(run.glob("events.out*"))
    assert (run / "metrics.csv").is_file()


def test_a_second_run_of_the_same_name_is_refused_while_the_first_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowers_pl.runs.ownership import RunFolder

    first = RunFolder.enter(folder / "checkpoints" / "d", resume=False)
    said = failure(capsys, "fit", "--config", "small.yaml", "--run_name", "d")
    assert "belongs to a run that is under way" in said
    first.release()

"""Two processes end with the weights and figures of one, through the unfreezing and with dropout on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers_pl.checkpointing import KEY, read_checkpoint
from flowers_pl.tracking import read_table

pytestmark = pytest.mark.slow


def fit(home: Path, drawings: Path, run: str, devices: int, **more: object) -> dict[str, torch.Tensor]:
    """A fit of two stages in processes of its own, in float64; ten validation photos do not divide by
    four."""
    settings = {
        "--data.root": drawings,
        "--data.image_size": 32,
        "--data.batch_size": 7,
        "--data.workers": 0,
        "--model.weights": "null",
        "--model.top_lr": 1e-3,
        "--unfreeze.head_epochs": 2,
        "--unfreeze.top_epochs": 2,
        "--trainer.accelerator": "cpu",
        "--trainer.devices": devices,
        "--trainer.strategy": "ddp" if devices > 1 else "auto",
        "--trainer.precision": "64-true",
        "--trainer.enable_progress_bar": "false",
        "--run_name": run,
        "--export": "none",
        **{f"--{name.replace('__', '.')}": value for name, value in more.items()},
    }
    command = [
        sys.executable,
        "-m",
        "flowers_pl",
        "fit",
        *(str(word) for pair in settings.items() for word in pair),
    ]
    done = subprocess.run(
        command,
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Stage 2 trains") == 1  # one rank speaks
    checkpoint = read_checkpoint(home / "checkpoints" / run / "last.ckpt")
    return {name: value for name, value in checkpoint["state_dict"].items() if value.is_floating_point()}


def pictures(run: Path, name: str) -> list[bytes]:
    """What TensorBoard has of a picture: a PNG for each time it was drawn."""
    events = EventAccumulator(str(run), {"images": 0}).Reload()
    return [image.encoded_image_string for image in events.Images(name)]


@pytest.mark.parametrize("devices", [2, 3])
def test_any_number_of_processes_gives_the_same_run(tmp_path: Path, drawings: Path, devices: int) -> None:
    one, several = fit(tmp_path, drawings, "one", 1), fit(tmp_path, drawings, "several", devices)
    assert_same(tmp_path, one, several)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_classes_are_balanced_over_all_processes_together(
    tmp_path: Path, drawings: Path, balance: str
) -> None:
    shutil.copytree(drawings, tmp_path / "few")
    for number in range(3, 10):  # of ten roses three are left
        (tmp_path / "few" / "rose" / f"rose_{number:04d}.png").unlink()
    more = {"data__balance": balance, "model__label_smoothing": 0.1, "unfreeze__head_epochs": 1}
    one, several = (
        fit(tmp_path, tmp_path / "few", run, devices, **more) for run, devices in (("one", 1), ("several", 2))
    )
    assert_same(tmp_path, one, several)
    states = [
        read_checkpoint(tmp_path / f"checkpoints/{run}/best.ckpt")[KEY]["unlike"]
        for run in ("one", "several")
    ]
    assert states[0]["limit"] == pytest.approx(states[1]["limit"], rel=1e-4)
    assert torch.allclose(states[0]["mean"], states[1]["mean"], atol=1e-5)


def assert_same(home: Path, one: dict[str, torch.Tensor], several: dict[str, torch.Tensor]) -> None:
    """Equal weights, and equal figures, of the runs "one" and "several"."""
    difference = {
        name: (one[name] - several[name]).norm() / one[name].norm().clamp_min(1e-12) for name in one
    }
    assert max(difference.values()) < 1e-10, max(difference, key=lambda name: difference[name])
    tables = [read_table(home / "checkpoints" / run / "metrics.csv") for run in ("one", "several")]
    for row, other in zip(*tables, strict=True):
        for name in set(row) - {"images_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5), name  # metrics are float32
    for picture in ("val/confusion_matrix", "best/confusion_matrix", "best/misclassified"):
        sheets = [pictures(home / "checkpoints" / run, picture) for run in ("one", "several")]
        assert sheets[0] == sheets[1], picture
        assert len(sheets[0]) == (1 if picture.startswith("best") else len(tables[0]))

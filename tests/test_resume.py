"""A run that was interrupted and resumed is the run that was not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flowers_pl.checkpointing import read_checkpoint
from flowers_pl.cli import main
from flowers_pl.tracking import read_table

SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "batch_size": 8, "workers": 0},
    "model": {"weights": None},
    "unfreeze": {"head_epochs": 2, "top_epochs": 2},
    "export": "none",
    "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
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


@pytest.mark.parametrize("epochs", [1, 2, 3])  # in stage 1, at the boundary, in stage 2
def test_a_resumed_run_ends_as_if_never_stopped(home: Path, epochs: int) -> None:
    run = home / "checkpoints" / "parts"
    stop = ["--trainer.max_epochs", str(epochs)]
    assert main(["fit", "--config", "small.yaml", "--run_name", "parts", *stop]) == 0
    assert len(read_table(run / "metrics.csv")) == epochs
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "-1"]) == 0
    for name in ("best.ckpt", "last.ckpt"):
        whole, parts = (read_checkpoint(home / "checkpoints" / one / name) for one in ("whole", "parts"))
        assert whole["epoch"] == parts["epoch"]
        assert whole["global_step"] == parts["global_step"]
        assert all(
            torch.equal(whole["state_dict"][key], parts["state_dict"][key]) for key in whole["state_dict"]
        )
    for one, other in zip(
        read_table(home / "checkpoints/whole/metrics.csv"), read_table(run / "metrics.csv"), strict=True
    ):
        assert {**one, "images_per_second": 0} == {**other, "images_per_second": 0}
    shutil.rmtree(run)


def test_a_finished_run_says_so_and_stays(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = home / "checkpoints" / "whole"
    before = read_checkpoint(run / "last.ckpt")["state_dict"]
    with caplog.at_level("INFO", "flowers_pl"):
        assert main(["fit", "--ckpt_path", str(run / "last.ckpt")]) == 0
    assert "This run is finished" in caplog.text
    after = read_checkpoint(run / "last.ckpt")["state_dict"]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_other_classes_cannot_be_resumed_on(
    home: Path, drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawings, home / "fewer", ignore=shutil.ignore_patterns("tulip"))
    last = str(home / "checkpoints" / "whole" / "last.ckpt")
    assert main(["fit", "--ckpt_path", last, "--data.root", "fewer"]) == 1
    assert "trained with classes" in capsys.readouterr().err.splitlines()[-1]

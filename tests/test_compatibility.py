"""A run of version 0.1.0 still loads, predicts, resumes and exports; every option of 0.1.0 is still there."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flowers_pl import FlowerClassifier, main

DATA = Path(__file__).parent / "data"
RUN = DATA / "run-0.1.0"
DRAWINGS = RUN / "drawings"
OPTIONS = json.loads((DATA / "options-0.1.0.json").read_text())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, as `checkpoints/run` of the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(RUN, tmp_path / "checkpoints" / "run"))


def probabilities(file: Path) -> dict[str, list[float]]:
    """The probabilities of each photo in a predictions.csv."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted({path.parent.name for path in DRAWINGS.glob("*/*.png")})
    return {row["path"]: [float(row[name]) for name in names] for row in rows}


def losses(file: Path) -> list[float]:
    """Training and validation loss of each epoch in a metrics.csv."""
    with file.open(newline="") as stream:
        return [float(row[f"{side}_loss"]) for row in csv.DictReader(stream) for side in ("train", "val")]


def test_a_checkpoint_of_0_1_0_predicts_what_it_predicted(run: Path) -> None:
    assert main(["predict", "--data.predict_root", str(DRAWINGS), "--data.workers", "0"]) == 0
    before, now = (probabilities(folder / "predictions.csv") for folder in (RUN, run))
    assert before.keys() == now.keys()
    for path, expected in before.items():
        assert now[path] == pytest.approx(expected, abs=1e-5)


def test_a_checkpoint_of_0_1_0_loads_in_python() -> None:
    model = FlowerClassifier.load(RUN / "best.ckpt")
    expected = probabilities(RUN / "predictions.csv")
    for path, shares in list(expected.items())[::10]:
        found = model.classify(DRAWINGS / path)
        assert [found[name] for name in model.classes] == pytest.approx(shares, abs=1e-5)
        assert model.unlikeness(DRAWINGS / path) is not None


@pytest.mark.slow
def test_a_run_of_0_1_0_resumes(run: Path) -> None:
    more = ["--unfreeze.top_epochs", "4", "--data.root", str(DRAWINGS), "--export", "none"]
    assert main(["fit", "--ckpt_path", "checkpoints/run/last.ckpt", *more]) == 0
    expected = losses(RUN / "resumed_metrics.csv")
    assert losses(run / "metrics.csv") == pytest.approx(expected, rel=1e-3)  # Adam amplifies rounding


@pytest.mark.slow
@pytest.mark.parametrize("file", ["final.pt2", pytest.param("final.onnx", marks=pytest.mark.release)])
def test_a_checkpoint_of_0_1_0_exports(run: Path, file: str) -> None:
    if file.endswith(".onnx"):
        pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    form = {"final.pt2": "torch", "final.onnx": "onnx"}[file]
    name_root(run / "best.ckpt", DRAWINGS)
    assert main(["export", "--format", form]) == 0
    assert (
        main(["predict", "--exported", f"checkpoints/run/{file}", "--data.predict_root", str(DRAWINGS)]) == 0
    )
    before, now = (probabilities(folder / "predictions.csv") for folder in (RUN, run))
    assert max(np.abs(np.subtract(before[path], now[path])).max() for path in before) < 1e-4


def name_root(checkpoint: Path, root: Path) -> None:
    """Let a checkpoint say that it was trained on the photos in `root`."""
    state = torch.load(checkpoint, weights_only=True)
    state["flowers_pl"]["data"]["root"] = str(root)
    torch.save(state, checkpoint)


def options_of(help_text: str) -> dict[str, str]:
    """The options that a subcommand's help lists, each with its default as the help gives it."""
    unwrapped = re.sub(r"\n {10,}", " ", help_text)
    lines = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w.+]+)(.*)", unwrapped, re.MULTILINE)
    defaults = (
        (option, re.search(r"default: (.*?)(?:, known subclasses.*)?\)$", line)) for option, line in lines
    )
    return {option: default[1] if default else "" for option, default in defaults}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_of_0_1_0_has_the_default_that_it_had(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    now = options_of(capsys.readouterr().out)
    before = OPTIONS[command]
    assert {option: now.get(option) for option in before} == before


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_print_config_gives_what_0_1_0_gave(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--print_config"])
    expected = yaml.safe_load((DATA / "print_config-0.1.0.yaml").read_text())[command]
    assert contained(expected, yaml.safe_load(capsys.readouterr().out)) == []


def contained(expected: dict[str, Any], found: dict[str, Any], above: str = "") -> list[str]:
    """Settings of `expected` that `found` lacks or has with another value."""
    wrong = []
    for name, value in expected.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            wrong += contained(value, found[name], f"{above}{name}.")
        elif name not in found or found[name] != value:
            wrong.append(f"{above}{name}")
    return wrong

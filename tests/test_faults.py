"""Faults found by trying siblings of those in docs/faults.md: damaged parts of a run, names, cards."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_pl import main
from flowers_pl.cli import audit as audit_command
from flowers_pl.core.files import read_csv, read_json, write_csv, write_json
from flowers_pl.core.names import BEST, CARD, NEW_CARD, PREDICTIONS, RUNS, SPLIT, TEST_JSON
from flowers_pl.data.drawings import draw_flower
from flowers_pl.network.weights import NotDownloadedError
from flowers_pl.runs.final_model import write_card

RUN = Path(__file__).parent / "data" / "run-0.1.0"
DRAWINGS = RUN / "drawings"
FIT = [
    *("fit", "--data.image_size", "32", "--data.workers", "0", "--model.weights", "null", "--export", "none"),
    *("--trainer.precision", "32", "--trainer.enable_progress_bar", "false"),
    *("--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "0", "--data.root"),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run, with its photos where its checkpoint says."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / RUNS / "run"
    shutil.copytree(RUN, folder, ignore=shutil.ignore_patterns("drawings"))
    change(folder, lambda state: state["flowers_pl"]["data"].update(root=str(DRAWINGS)))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    state = torch.load(folder / BEST, weights_only=True)
    edit(state)
    torch.save(state, folder / BEST)


def said(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that is refused, and return its one sentence."""
    capsys.readouterr()
    assert main(args) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flowers_pl: ")]
    return line


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "class names": (lambda state: state["flowers_pl"].update(classes=[1] * 5), "classes are not all texts"),
    "stage": (lambda state: state["flowers_pl"]["stage"].clear(), "stage.number is missing"),
    "settings": (lambda state: state["hyper_parameters"].clear(), "hyper_parameters.weights is missing"),
    "root": (lambda state: state["flowers_pl"]["data"].pop("root"), "data.root is missing"),
    "data": (lambda state: state["flowers_pl"]["data"].update(rooot=1), "data.rooot is not known"),
}


@pytest.mark.parametrize(
    ("part", "command"), [*zip(EDITS, itertools.cycle(["test", "export", "explain"]), strict=False)]
)
def test_a_checkpoint_whose_parts_were_changed(
    part: str, command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, expected = EDITS[part]
    change(run, edit)
    line = said([command, "--ckpt_path", str(run / BEST)], capsys)
    assert expected in line
    assert BEST in line


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("label", "species", "no column 'label'"),
        (",rose,", ",tree,", "label 'tree'"),
        (",val,", ",v,", "side 'v'"),
    ],
)
@pytest.mark.parametrize("command", ["export", "explain"])
def test_a_split_that_is_not_of_the_run(
    command: str, before: str, after: str, expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / SPLIT).read_text()
    assert before in text
    (run / SPLIT).write_text(text.replace(before, after))
    line = said([command, "--ckpt_path", str(run / BEST)], capsys)
    assert f"split.csv' is not as the run wrote it ({expected})" in line


@pytest.mark.slow
def test_test_on_new_photos_beside_a_damaged_split(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (run / CARD).write_text("mine")
    (run / SPLIT).write_text("photo;class\na;b\n")
    args = ["test", "--data.test_root", str(DRAWINGS), "--data.workers", "0"]
    assert main([*args, "--trainer.enable_progress_bar", "false"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert "MODEL_CARD.md is not renewed: " in caplog.text


def test_a_card_that_was_filled_in_is_kept(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_card(run, run / BEST, [], {"final.onnx": "agrees"})
    write_card(run, run / BEST, [], {"final.pt2": "agrees"})
    card = (run / CARD).read_text()
    assert "final.pt2" in card
    assert not (run / NEW_CARD).exists()
    (run / CARD).write_bytes(card.replace("\n", "\r\n").encode())  # by git or an editor
    write_card(run, run / BEST, [], {"final.pt2": "agrees again"})
    assert "agrees again" in (run / CARD).read_text()
    assert not caplog.records
    mine = card.replace("**to be filled in**", "our garden", 1)
    (run / CARD).write_text(mine)
    write_card(run, run / BEST, [], {"final.pt2": "agrees, a third time"})
    assert (run / CARD).read_text() == mine
    assert "agrees, a third time" in (run / NEW_CARD).read_text()
    assert "was changed by hand, so it is kept" in caplog.text


NAMES = [
    "a\x1b]0;title\x07.jpg",
    "a\\x1b.jpg",
    "\x9b31m\u202egpj.png",
    "latin \udce8\x7f.jpg",
    "a\\u202e",
    "two\nlines",
]


@pytest.mark.parametrize("name", NAMES)
def test_controls_in_a_name_are_not_written_raw(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", ["path"], [[name]])
    write_json(tmp_path / "x.json", {name: name})
    for file in ("x.csv", "x.json"):
        text = (tmp_path / file).read_text(encoding="utf-8").replace("\n", "")
        assert not any(letter in text for letter in "\x1b\x07\x7f\x9b\u202e")
    assert read_csv(tmp_path / "x.csv") == [{"path": name}]
    assert read_json(tmp_path / "x.json") == {name: name}


def test_predictions_of_a_photo_with_an_escape_sequence_in_its_name(run: Path) -> None:
    photos = Path("new")
    photos.mkdir()
    name = "rose\x1b[31m.png"
    draw_flower("rose", 0, 48).save(photos / name)
    args = ["predict", "--data.predict_root", "new", "--data.workers", "0"]
    assert main([*args, "--trainer.enable_progress_bar", "false"]) == 0
    assert b"\x1b" not in (run / PREDICTIONS).read_bytes()
    assert read_csv(run / PREDICTIONS)[0]["path"] == name
    with (run / PREDICTIONS).open(newline="") as stream:
        assert next(csv.DictReader(stream))["path"] == r"rose\x1b[31m.png"


def test_audit_where_the_default_weights_cannot_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(*args: Any) -> None:
        raise NotDownloadedError("--model.weights: IMAGENET1K_V1 could not be downloaded.")

    monkeypatch.setattr(audit_command, "load_weights", offline)
    output = str(tmp_path / "audit")
    args = ["audit", "--data.root", str(DRAWINGS), "--data.image_size", "32", "--output", output]
    assert main(args) == 0
    assert caplog.text.count("Labels will not be checked. --model.weights: IMAGENET1K_V1") == 1
    assert "or no download" in Path(output, "audit.txt").read_text()


def test_audit_with_a_file_of_weights_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "audit",
        "--data.root",
        str(DRAWINGS),
        "--model.weights",
        "nowhere.pth",
        "--output",
        str(tmp_path),
    ]
    assert "is neither a file nor a name" in said(args, capsys)


def test_the_test_folder_of_a_split_is_named_as_seen_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("train", "train", "train", "val", "test")):
        for kind in ("rose", "daisy"):
            file = Path("photos", place, kind, f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            draw_flower(kind, number, 48).save(file)
    assert main([*FIT, "photos", "--run_name", "run"]) == 0
    assert main(["test", "--data.workers", "0"]) == 0
    assert read_json(RUNS / "run" / TEST_JSON)["judged"] == "images of photos/test"


def test_a_run_whose_name_is_not_utf_8_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    assert main([*FIT, str(DRAWINGS), "--run_name", name]) == 0
    last = str(RUNS / name / "last.ckpt")
    assert main(["fit", "--ckpt_path", last, "--unfreeze.head_epochs", "2"]) == 0
    assert torch.load(last, weights_only=True)["epoch"] == 1


@pytest.mark.slow
def test_a_resume_shows_where_the_run_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    assert main([*FIT, str(DRAWINGS), "--run_name", "run"]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["fit", "--ckpt_path", "../checkpoints/run/last.ckpt", "--unfreeze.head_epochs", "2"]) == 0
    assert "'tensorboard --logdir ../checkpoints' shows it" in caplog.text


def test_a_split_of_other_columns_given_by_hand_is_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / SPLIT).write_text("photo;class\na;b\n")
    assert "has no column 'group'" in said(["validate"], capsys)

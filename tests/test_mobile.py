"""export --format executorch: the file agrees with its checkpoint and says what an app has to know."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_pl import Exported, FlowerClassifier, check_export, main
from flowers_pl.core.errors import FlowersError
from flowers_pl.data.drawings import draw_flower
from flowers_pl.export import mobile, write
from flowers_pl.export.mobile import export_executorch
from flowers_pl.export.verify import generated_images
from flowers_pl.network.answers import Temperature

RUN = Path(__file__).parent / "data" / "run-0.1.0"
DRAWINGS = RUN / "drawings"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run, with `final.pte`."""
    pytest.importorskip(
        "executorch.runtime",
        reason="the extra 'mobile' is not installed for this torch",
        exc_type=ImportError,
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    folder.mkdir()
    for name in ("best.ckpt", "split.csv", "left_out.csv"):
        shutil.copy(RUN / name, folder)
    command = ["export", "--format", "executorch", "--ckpt_path", str(folder / "best.ckpt")]
    assert main([*command, "--root", str(DRAWINGS)]) == 0
    return folder


@pytest.mark.slow
def test_the_file_agrees_and_names_no_path_of_this_machine(run: Path) -> None:
    (measured,) = json.loads((run / "exports.json").read_text())["files"].values()
    assert measured.startswith("the checkpoint's class for 10 of 10 validation images")
    assert f"- `final.pte`: {measured}" in (run / "MODEL_CARD.md").read_text()
    model, exported = FlowerClassifier.load(run / "best.ckpt"), Exported.open(run / "final.pte")
    check_export(exported, model, generated_images()).verify(1e-5)  # XNNPACK adds in another order
    batch = torch.stack([torch.tensor(np.array(draw_flower("rose", seed, 60))) for seed in range(5)])
    batch = batch.permute(0, 3, 1, 2)
    np.testing.assert_array_equal(exported(batch), exported.each(batch))
    assert exported(batch[:0]).shape == (0, 5)
    data = (run / "final.pte").read_bytes()
    assert len(data) < 9e6
    assert b"site-packages" not in data
    assert str(Path(mobile.__file__).parent).encode() not in data


@pytest.mark.release
def test_an_app_finds_in_the_file_what_it_has_to_know(run: Path) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(run / "final.pte")
    told = {name: program.load_method(name).execute([])[0] for name in program.method_names - {"forward"}}
    model = FlowerClassifier.load(run / "best.ckpt")
    assert told.keys() == {"classes", "image_size", "flowers_pl"}
    assert (json.loads(told["classes"]), told["image_size"]) == (model.classes, model.image_size)
    photo, answer = program.metadata("forward").input_tensor_meta(0), program.metadata("forward")
    assert photo.sizes() == (1, 3, model.image_size, model.image_size)
    assert photo.nbytes() == np.prod(photo.sizes())  # one byte each
    assert answer.output_tensor_meta(0).sizes() == (1, len(model.classes))


@pytest.mark.release
def test_the_lines_of_the_card_give_the_answers_of_the_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "a.png"
    draw_flower("rose", 3, 90).crop((0, 0, 90, 60)).save(photo)
    blocks = re.findall(r"```python\n(.*?)```", (run / "MODEL_CARD.md").read_text(), re.DOTALL)
    monkeypatch.chdir(run)
    exec("".join(blocks).replace('"photo.jpg"', repr(str(photo))), {})
    (printed,) = re.findall(r"\[\[(.*?)\]\]", capsys.readouterr().out, re.DOTALL)
    found = [float(number) for number in printed.split(",")]
    model = FlowerClassifier.load(run / "best.ckpt")
    likely = model.classify(photo)
    assert found == pytest.approx([likely[name] for name in model.classes], abs=1e-3)


@pytest.mark.release
def test_predict_takes_it_and_says_no_more_than_with_another_file(run: Path, tmp_path: Path) -> None:
    alone = shutil.copy(run / "final.pte", tmp_path)
    command = [sys.executable, "-m", "flowers_pl", "predict", "--exported", alone]
    done = subprocess.run(
        [*command, "--data.predict_root", DRAWINGS / "rose"], check=True, capture_output=True, text=True
    )
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "Exported model",
        "12 predictions",
    ]
    with open(tmp_path / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    model = FlowerClassifier.load(run / "best.ckpt")
    for row in rows:
        expected = model.classify(DRAWINGS / "rose" / row["path"])
        assert [float(row[name]) for name in expected] == pytest.approx(list(expected.values()), abs=1e-4)


@pytest.mark.release
def test_the_mirror_image_and_the_temperature_are_part_of_the_file(run: Path, tmp_path: Path) -> None:
    model = FlowerClassifier.load(run / "best.ckpt")
    plain = Exported.open(run / "final.pte")
    model.flip_test, model.temperature = True, Temperature(1.7, 9)
    export_executorch(model, tmp_path / "both.pte")
    exported = Exported.open(tmp_path / "both.pte")
    check_export(exported, model, generated_images()).verify(1e-5)
    photo = next(iter(generated_images()))[None]
    assert (
        np.abs(exported(photo) - exported(photo.flip(3))).max()
        < 1e-3
        < np.abs(exported(photo) - plain(photo)).max()
    )


@pytest.mark.release
def test_torn_and_foreign_files_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, file = (run / "final.pte").read_bytes(), tmp_path / "file.pte"
    lacking = whole.replace(b"image_size", b"image_side")
    for data in (b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-100_000], lacking):
        file.write_bytes(data)
        with pytest.raises(FlowersError, match="damaged, or not a model"):
            Exported.open(file)
    assert capsys.readouterr().err == ""  # the runtime prints its errors


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "find_spec", lambda name: None)
    (tmp_path / "a.pte").touch()
    for way in (
        lambda: export_executorch(FlowerClassifier(weights=None), tmp_path / "b.pte"),
        lambda: Exported.open(tmp_path / "a.pte"),
    ):
        with pytest.raises(FlowersError, match=r"executorch must .* pip install 'flowers_pl\[mobile\]'"):
            way()


def test_an_executorch_for_another_torch_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ImportError("undefined symbol:\n _ZN2at")

    monkeypatch.setattr(write, "find_spec", lambda name: name)
    monkeypatch.setattr(mobile, "import_module", fail)
    monkeypatch.setattr(mobile, "version", lambda name: "1.5.1")
    with pytest.raises(FlowersError, match=r"executorch 1.5.1 does not work with torch .*symbol:\\n _ZN2at"):
        export_executorch(FlowerClassifier(weights=None), tmp_path / "a.pte")

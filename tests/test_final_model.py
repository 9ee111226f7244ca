"""runs/final_model, cli/export: what is written without photos, how the card says photos are read, int8."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_pl import FlowerClassifier, main
from flowers_pl.core.system import processor
from flowers_pl.data.drawings import draw_flower
from flowers_pl.export.write import Deployable, written_whole
from flowers_pl.runs.final_model import write_card

RUN = Path(__file__).parent / "data" / "run-0.1.0"
DRAWINGS = RUN / "drawings"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run whose folder of photos is gone, as `checkpoints/run` of the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "run"
    folder.mkdir(parents=True)
    for name in ("best.ckpt", "split.csv", "left_out.csv"):
        shutil.copy(RUN / name, folder)
    state = torch.load(folder / "best.ckpt", weights_only=True)
    state["flowers_pl"]["data"]["root"] = str(tmp_path / "gone")
    torch.save(state, folder / "best.ckpt")
    return folder


# ---------------------------------------------------------------- photos that are not there


@pytest.mark.release
@pytest.mark.parametrize("split", ["beside the checkpoint", "gone too"])
def test_export_with_the_photos_moved_away(split: str, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    if split == "gone too":
        (run / "split.csv").unlink()
    assert main(["export"]) == 0
    expected = "the checkpoint's class for 26 of 26 generated images"
    files = json.loads((run / "exports.json").read_text())["files"]
    assert files["final.pt2"].startswith(expected)
    assert expected in (run / "MODEL_CARD.md").read_text()
    assert "final.pt2 is checked on generated images" in caplog.text
    assert ("| daisy | 10 | 2 |" in (run / "MODEL_CARD.md").read_text()) == (split != "gone too")


@pytest.mark.slow
def test_export_with_some_of_the_photos_moved_away(run: Path, tmp_path: Path) -> None:
    shutil.copytree(DRAWINGS, tmp_path / "moved")
    for folder in ("rose", "tulip"):
        shutil.rmtree(tmp_path / "moved" / folder)
    assert main(["export", "--root", "moved"]) == 0
    assert "of 6 validation images" in (run / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_export_with_photos_that_cannot_be_read(run: Path, tmp_path: Path) -> None:
    shutil.copytree(DRAWINGS, tmp_path / "damaged")
    for file in (tmp_path / "damaged").glob("*/*.png"):
        file.write_bytes(b"damaged")
    assert main(["export", "--root", "damaged"]) == 0
    assert "of 26 generated images" in (run / "MODEL_CARD.md").read_text()


@pytest.mark.release
def test_export_of_a_checkpoint_alone_finds_its_validation_photos(run: Path) -> None:
    (run / "split.csv").unlink()
    assert main(["export", "--root", str(DRAWINGS)]) == 0
    assert "validation images" in (run / "MODEL_CARD.md").read_text()


def test_export_to_int8_with_the_photos_moved_away(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["export", "--format", "onnx", "--quantize", "int8"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("flowers_pl: --quantize int8 needs training photos to calibrate on")
    assert "--root" in said
    assert not list(run.glob("*.onnx"))  # it says so before it works


@pytest.mark.slow
@pytest.mark.parametrize("before", [pytest.param(None, marks=pytest.mark.release), b"of an older export"])
def test_a_file_that_does_not_agree_leaves_what_was_there(
    before: bytes | None, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if before:
        (run / "final.pt2").write_bytes(before)
    forward = Deployable.forward
    monkeypatch.setattr(Deployable, "forward", lambda module, photos: forward(module, photos).flip(1))
    assert main(["export"]) == 1
    assert "differs from its checkpoint" in capsys.readouterr().err
    assert not {"exports.json", "MODEL_CARD.md"} & {file.name for file in run.iterdir()}
    assert [file.read_bytes() for file in run.iterdir() if file.suffix == ".pt2"] == [before] * bool(before)


def test_a_full_disk_is_said_of_the_file_itself(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(model: FlowerClassifier, file: Path) -> None:
        with written_whole(file):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowers_pl.export.write.export_torch", fail)
    assert main(["export"]) == 1
    said = capsys.readouterr().err
    assert "final.pt2' cannot be written" in said
    assert ".final-" not in said


def test_a_folder_that_is_not_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--root", "nowhere"]) == 1
    assert "--root: there is no folder 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["exports.json", "test.json"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"step": 1}'])
def test_a_card_is_written_beside_damaged_files(
    name: str, content: bytes, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / name).write_bytes(content)
    write_card(run, run / "best.ckpt", [], {"final.pt2": "agrees"})
    assert "- `final.pt2`: agrees" in (run / "MODEL_CARD.md").read_text()
    assert f"{name} is damaged" in caplog.text


# ---------------------------------------------------------------- int8


@pytest.mark.release
def test_int8_says_what_it_costs_and_where_it_was_checked(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    run = run.rename(run.with_name("caf\udce9"))  # onnxruntime refuses such paths
    command = ["export", "--ckpt_path", str(run / "best.ckpt"), "--format", "onnx", "--quantize", "int8"]
    assert main([*command, "--root", str(DRAWINGS)]) == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    measured = json.loads((run / "exports.json").read_text())["files"]["final_int8.onnx"]
    for part in ("MB, accuracy", "on 10 validation images", f"checked on {processor()}", "16 bits"):
        assert part in measured
    assert f"`final_int8.onnx`: {measured}" in (run / "MODEL_CARD.md").read_text()


# ---------------------------------------------------------------- the card's lines of Python


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card with lines for .pt2 and .onnx, in the folder of its files."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    for name in ("best.ckpt", "split.csv"):
        shutil.copy(RUN / name, folder)
    for form in ("torch", "onnx"):
        command = ["export", "--ckpt_path", str(folder / "best.ckpt"), "--root", str(DRAWINGS)]
        assert main([*command, "--format", form]) == 0
    return folder / "MODEL_CARD.md"


def grey16() -> np.ndarray:
    """A drawing in 16-bit grey, uint16 (H, W)."""
    return np.asarray(draw_flower("rose", 3, 90).convert("L")).astype(np.uint16) * 257


def save_photo(kind: str, folder: Path) -> Path:
    """A photo of a kind that is often read wrongly."""
    drawing, other = draw_flower("rose", 3, 90).crop((0, 0, 90, 60)), draw_flower("daisy", 5, 90)
    alpha = Image.radial_gradient("L").resize(drawing.size)
    file = folder / f"{kind}.png"
    if kind == "16-bit grey":
        Image.fromarray(grey16()).save(file)
    elif kind == "16-bit grey with a transparent level":
        Image.fromarray(grey16()).save(file, transparency=int(np.median(grey16())))
    elif kind == "cut-out":
        drawing.putalpha(alpha)
        drawing.save(file)
    elif kind == "grey cut-out":
        grey = drawing.convert("LA")
        grey.putalpha(alpha)
        grey.save(file)
    elif kind == "palette with transparency":
        drawing.quantize(16).save(file, transparency=3)
    elif kind == "palette cut-out":
        drawing.quantize(16).save(file, transparency=bytes(range(0, 256, 16)))
    elif kind == "RGB with a transparent colour":
        drawing.save(file, transparency=drawing.getpixel((5, 5)))
    elif kind == "rotated":
        exif = drawing.getexif()
        exif[0x0112] = 6  # a quarter turn
        file = file.with_suffix(".jpg")
        drawing.save(file, exif=exif)
    elif kind == "CMYK":
        file = file.with_suffix(".jpg")
        drawing.convert("CMYK").save(file)
    elif kind == "animation":
        file = file.with_suffix(".gif")
        drawing.save(file, save_all=True, append_images=[other.resize(drawing.size)])
    else:
        file = file.with_suffix(".tif")
        values = grey16()
        exif = Image.Exif()
        exif[0x0112] = 8
        Image.fromarray(values).save(file, exif=exif)
    return file


@pytest.mark.release
@pytest.mark.parametrize(
    "kind",
    [
        "16-bit grey",
        "16-bit grey with a transparent level",
        "cut-out",
        "grey cut-out",
        "palette with transparency",
        "palette cut-out",
        "RGB with a transparent colour",
        "rotated",
        "CMYK",
        "animation",
        "rotated 16-bit TIFF",
    ],
)
def test_the_final_model_used_as_the_card_says(
    kind: str, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save_photo(kind, tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert len(blocks) == 3
    assert '"photo.jpg"' in blocks[0]
    classes = FlowerClassifier.load(card.parent / "best.ckpt").classes
    likely = FlowerClassifier.load(card.parent / "best.ckpt").classify(photo)
    monkeypatch.chdir(card.parent)
    capsys.readouterr()
    exec("".join(blocks).replace('"photo.jpg"', repr(str(photo))), {})
    printed = re.findall(r"\[\[(.*?)\]\]", capsys.readouterr().out, re.DOTALL)
    assert len(printed) == 2
    for numbers in printed:
        found = [float(number) for number in numbers.replace(",", " ").split()]
        assert found == pytest.approx([likely[name] for name in classes], abs=1e-3)

"""Names of any bytes and any script, in figures, TensorBoard, tables and on the screen."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from flowers_pl import confusion_matrix, draw_flower, main, misclassified
from flowers_pl.cli.explain import _name_of_picture
from flowers_pl.core.columns import RESERVED, class_columns
from flowers_pl.core.files import read_csv, read_json
from flowers_pl.core.text import printable, text_width
from flowers_pl.evaluation.figures import figure_pixels
from flowers_pl.evaluation.fonts import find_fonts
from flowers_pl.evaluation.predictions import (
    Row,
    prediction_table,
    write_predictions,
)
from flowers_pl.evaluation.report import evaluate
from flowers_pl.runs.progress import AboveBars

STRANGE = [
    "latin \udce8.jpg", "a\nb", "a\x00b", "\u202egpj.esor", "$x^2$", "${", "\\alpha$", "a" * 4000, "\ud800",
    "👩\u200d🌾", "x\x1b[31m", "",
]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_is_drawn(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure_pixels(misclassified([np.zeros((9, 9, 3), np.uint8)], [name], [name], [0.5], [name]))
        figure_pixels(confusion_matrix(np.eye(2, dtype=int), [name, "rose"]))


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_is_printed_and_logged_on_one_line(name: str) -> None:
    text = evaluate(np.eye(2), np.arange(2), [name, "rose"], evaluated_on=f"images of {name}").text()
    table = "\n".join(
        prediction_table([Row(name, name, (0.9,), ""), Row(name, "", (), name or "empty file")])
    )
    logged = AboveBars().format(
        logging.LogRecord("x", logging.INFO, "", 0, "%s: %s", (name, Path(name)), None)
    )
    assert len(table.splitlines()) == 2
    assert len(logged.splitlines()) <= 1
    assert len(text.splitlines()) == len(
        evaluate(np.eye(2), np.arange(2), ["daisy", "rose"]).text().splitlines()
    )
    for said in (text, table, logged):
        said.encode()
        categories = {unicodedata.category(letter) for letter in said.replace("\n", "")}
        assert not categories & {"Cc", "Cs"}  # control characters and surrogates


def test_bytes_are_shown_as_bytes_and_emoji_stay_whole() -> None:
    assert printable("caf\udce9") == r"caf\xe9"
    assert printable("👩\u200d🌾") == "👩\u200d🌾"
    assert text_width("e\u0301") == 1


@pytest.fixture(scope="module")
def latin_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a root called caf\\351, of photos whose names are not UTF-8 either."""
    home = tmp_path_factory.mktemp("latin")
    root = home / os.fsdecode(b"caf\xe9")
    for kind in ("daisy", "rose"):
        (root / kind).mkdir(parents=True)
        for number in range(6):
            draw_flower(kind, number, 48).save(root / kind / os.fsdecode(b"latin \xe8 %d.png" % number))
    settings = {
        "data": {"image_size": 32, "batch_size": 4, "workers": 0},
        "model": {"weights": None},
        "unfreeze": {"head_epochs": 1, "top_epochs": 0},
        "gradcam": {"every_n_epochs": 1},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    (home / "small.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        given = ["--config", "small.yaml", "--data.root", root.name, "--run_name", "first"]
        assert main(["fit", *given, "--export", "none"]) == 0
    return home


@pytest.mark.slow
def test_photos_and_a_root_that_are_not_utf_8(latin_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(latin_run)
    root, run = os.fsdecode(b"caf\xe9"), Path("checkpoints/first")
    assert main(["test", "--data.test_root", root]) == 0
    for name in ("test.txt", "test.json", "predictions.csv", "split.csv", "left_out.csv", "config.yaml"):
        (run / name).read_text(encoding="utf-8")
    assert r"images of" in (run / "test.txt").read_text()
    assert read_json(run / "test.json")["judged"].endswith(root)
    paths = {row["path"] for row in read_csv(run / "predictions.csv")}
    assert paths == {path.relative_to(root).as_posix() for path in Path(root).rglob("*.png")}
    assert main(["explain", "--most", "2", "--each", "true"]) == 0
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--unfreeze.head_epochs", "2"]) == 0


@pytest.mark.slow
def test_a_run_that_is_not_utf_8_goes_without_tensorboard(
    latin_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(latin_run)
    run = os.fsdecode(b"caf\xe9-run")
    given = ["--config", "small.yaml", "--data.root", os.fsdecode(b"caf\xe9"), "--run_name", run]
    assert main(["fit", *given]) == 0
    assert "TensorBoard cannot write there" in caplog.text
    assert Path("checkpoints", run, "final.pt2").exists()
    assert not list(Path("checkpoints", run).rglob("events*"))


def test_an_overlay_of_a_photo_with_a_long_name_has_a_shorter_one(tmp_path: Path) -> None:
    longest = "é" * 125 + ".jpg"
    for name in (longest, longest.replace(".jpg", ".png")):
        (tmp_path / "rose").mkdir(exist_ok=True)
        (tmp_path / _name_of_picture(f"rose/{name}")).write_bytes(b"")
    assert len(list((tmp_path / "rose").iterdir())) == 2
    assert _name_of_picture("rose/a.jpg") == "rose/a.jpg.png"


# ---------------------------------------------------------------- columns of predictions.csv


@pytest.mark.parametrize(
    "classes",
    [
        ["daisy", "unknown"],
        list(RESERVED),
        ["path", "class:path", "class:class:path"],
        ["class:unknown", "unknown", "Unknown", "UNKNOWN"],
        ["error", "=error", "'=error", "é", "e\u0301"],
    ],
)
def test_no_class_shares_a_column(classes: list[str], tmp_path: Path) -> None:
    shares = [(number + 1) / 100 for number in range(len(classes))]
    write_predictions(tmp_path / "p.csv", [Row("a.jpg", classes[0], shares, "", 0.5)], classes)
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as stream:
        header = next(csv.reader(stream))
    assert len(set(header)) == len(header) == len(classes) + 5  # path, label, unlike, unknown, error
    (row,) = read_csv(tmp_path / "p.csv")
    columns = class_columns(classes)
    assert [float(row[column]) for column in columns] == shares
    assert (row["path"], row["label"], row["unknown"], row["error"]) == ("a.jpg", classes[0], "no", "")
    for name, column in zip(classes, columns, strict=True):
        assert (column == name) == (name not in RESERVED)


# ---------------------------------------------------------------- fonts


def test_a_script_without_a_font_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowers_pl.evaluation.fonts.find_fonts", lambda letters: ((), letters))
    monkeypatch.setattr("flowers_pl.evaluation.fonts._reported", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            figure_pixels(confusion_matrix(np.eye(2, dtype=int), ["玫瑰", "向日葵"]))
    (line,) = [message for message in caplog.messages if "No font" in message]
    assert "fonts-noto-cjk" in line
    assert "玫" in line


def test_a_font_that_the_system_has_is_used(tmp_path: Path) -> None:
    """Installed after matplotlib has listed the fonts: a font of one rare letter."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({0x2FA1D: "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Square", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    fonts = tmp_path / "data" / "fonts"
    fonts.mkdir(parents=True)
    code = (
        "import numpy as np; import matplotlib.font_manager\n"
        "from flowers_pl.evaluation.fonts import find_fonts\n"
        "from flowers_pl import confusion_matrix\n"
        "print(find_fonts('\\U0002fa1d'))\n"
        "confusion_matrix(np.eye(2, dtype=int), ['\\U0002fa1d', 'b']).savefig('m.png')\n"
    )
    here = os.environ | {"XDG_DATA_HOME": str(tmp_path / "data"), "MPLCONFIGDIR": str(tmp_path)}
    run = {"cwd": tmp_path, "env": here, "capture_output": True, "text": True, "check": True}
    before = subprocess.run([sys.executable, "-c", code], **run)  # type: ignore[call-overload]
    assert before.stdout.startswith("((), ")
    assert before.stderr.count("\n") == 1
    builder.save(fonts / "square.ttf")
    (fonts / "damaged.ttf").write_bytes(b"no font")
    after = subprocess.run([sys.executable, "-c", code], **run)  # type: ignore[call-overload]
    assert after.stdout == "(('One Square',), '')\n"
    assert not after.stderr


def test_letters_of_latin_need_no_other_font() -> None:
    assert find_fonts("äöüéß") == ((), "")

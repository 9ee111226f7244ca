"""Every kind of file that a folder of photos may hold, in fit, test and predict.

One folder holds them all. The three commands run on it in one process of their own, which may not read what
its user may not (root could), and which tells its peak of memory; a crash or a hang of it is seen.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_decoding import app1, encoded, png

from flowers_pl.cli.app import main
from flowers_pl.core.files import read_csv
from flowers_pl.data.decoding import read_photo
from flowers_pl.data.drawings import KINDS, draw_flower

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("bad_files_worker.py")
PHOTO = draw_flower("rose", 900, 64)
MOST_MEMORY = 2_500  # MiB; a decompression bomb would take 40,000


def jpeg(number: int) -> bytes:
    return encoded(draw_flower("rose", number, 64), "JPEG", quality=95)


def scans(jpeg_file: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan stands there many times."""
    last = jpeg_file.rindex(b"\xff\xda")
    return jpeg_file[:last] + jpeg_file[last:-2] * times + jpeg_file[-2:]


def animation() -> bytes:
    frames = [draw_flower("rose", number, 48).quantize() for number in (901, 1, 2)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(draw_flower("rose", 902, 64).crop((0, 0, 64, 40)), "JPEG", exif=exif)


def grey_16() -> bytes:
    values = np.asarray(draw_flower("rose", 903, 48).convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(values), "PNG")


READABLE: dict[str, bytes] = {
    "png called.jpg": encoded(draw_flower("rose", 904, 64), "PNG"),
    "16-bit.png": grey_16(),
    "palette.png": encoded(draw_flower("rose", 905, 64).quantize(), "PNG"),
    "grey.jpg": encoded(draw_flower("rose", 906, 64).convert("L"), "JPEG"),
    "cmyk.jpg": encoded(draw_flower("rose", 907, 64).convert("CMYK"), "JPEG"),
    "rgba.png": encoded(draw_flower("rose", 908, 64).convert("RGBA"), "PNG"),
    "animated.gif": animation(),
    "webp.webp": encoded(draw_flower("rose", 909, 64), "WEBP"),
    "rotated.jpg": rotated(),
    "one pixel.png": encoded(Image.new("RGB", (1, 1), (9, 200, 90)), "PNG"),
    "wide.jpg": encoded(draw_flower("rose", 910, 64).resize((20_000, 30)), "JPEG"),
    "Röschen 薔薇 🌹.jpg": jpeg(911),
    "with\nnewline and\ttab.jpg": jpeg(912),
    "=1+1.jpg": jpeg(913),
    '\'quoted, "twice".jpg': jpeg(914),
    os.fsdecode(b"latin-1 \xe9.jpg"): jpeg(915),
    "with\x1b[31m escape.jpg": jpeg(916),
}
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "truncated.jpg": (jpeg(920)[:-300], "truncated"),
    "truncated.png": (encoded(PHOTO, "PNG")[:-300], "truncated"),
    "zero bytes.jpg": (b"", "empty file"),
    "text.jpg": (b"a rose is a rose is a rose\n" * 9, "not a picture"),
    "bomb.png": (png(60_000, 60_000, 8, 2, b""), "far more pixels"),
    "large.png": (png(16_000, 10_000, 8, 2, b""), "160 million pixels"),
    "scans.jpg": (scans(encoded(PHOTO, "JPEG", progressive=True), 3000), "scans"),
}
ODD = {  # no regular files, or none that may be read
    "private.jpg": "no permission",
    "dangling.jpg": "link to nothing",
    "circle.jpg": "loop of links",
    "fifo.jpg": "not a file",
    "closed": "folder that is closed",
    "up": "link to a folder",
}
REASONS = {name: reason for name, (_, reason) in UNREADABLE.items()} | ODD


class Done(NamedTuple):
    """What the worker left: the working folder, what it said on the screen, and what it told.

    `told` has the exit "codes", the "peak" of memory in MiB, and which photos "vanished" and "changed".
    """

    home: Path
    out: str
    err: str
    told: dict[str, Any]


def fill(folder: Path) -> None:
    """Put every kind of file into a folder."""
    for name, data in READABLE.items() | {name: data for name, (data, _) in UNREADABLE.items()}.items():
        (folder / name).write_bytes(data)
    (folder / "private.jpg").write_bytes(jpeg(930))
    (folder / "private.jpg").chmod(0)
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "up").symlink_to(folder.parent)
    os.mkfifo(folder / "fifo.jpg")
    (folder / "closed").mkdir()
    (folder / "closed" / "photo.jpg").write_bytes(jpeg(931))
    (folder / "closed").chmod(0)


def clean(root: Path) -> Path:
    """A folder of five classes of three good photos."""
    for kind in KINDS:
        (root / kind).mkdir(parents=True)
        for number in range(3):
            draw_flower(kind, number, 48).save(root / kind / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The three commands, run on a folder whose class rose holds every kind of file."""
    home = tmp_path_factory.mktemp("bad")
    fill(clean(home / "set") / "rose")
    process = subprocess.run(
        [sys.executable, str(WORKER)], cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=240, errors="surrogateescape",
    )  # fmt: skip
    (home / "set" / "rose" / "closed").chmod(0o700)
    assert process.returncode == 0, process.stderr[-3000:]
    return Done(home, process.stdout, process.stderr, json.loads((home / "told.json").read_text()))


@pytest.mark.slow
def test_all_three_commands_end_well_and_take_little_memory(done: Done) -> None:
    assert done.told["codes"] == {"fit": 0, "test": 0, "predict": 0}
    assert "Traceback" not in done.err
    assert "\x1b[31m" not in done.out + done.err  # a name cannot speak to the terminal
    assert done.told["peak"] < MOST_MEMORY


def test_fit_trains_on_what_can_be_read_and_names_the_rest(done: Done) -> None:
    run = done.home / "checkpoints" / "bad"
    placed = {row["path"] for row in read_csv(run / "split.csv")}
    good = {f"{kind}/{number}.png" for kind in KINDS for number in range(3)}
    assert placed == good | {f"rose/{name}" for name in READABLE}
    left_out = {row["path"]: row["reason"] for row in read_csv(run / "left_out.csv")}
    assert set(left_out) == {f"rose/{name}" for name in REASONS}
    for name, reason in REASONS.items():
        assert reason in left_out[f"rose/{name}"], name
        assert name in done.err


def test_photos_that_vanish_or_change_while_training_do_not_stop_it(done: Done) -> None:
    assert not (done.home / done.told["vanished"]).exists()
    assert (done.home / done.told["changed"]).read_bytes() == b"changed"
    for name in ("vanished", "changed"):  # the final model could not be checked on them
        assert f"Left out: {done.told[name].removeprefix('set/')} (" in done.err
    assert (done.home / "checkpoints" / "bad" / "final.pt2").is_file()


def test_test_judges_what_can_be_read_and_names_the_rest(done: Done) -> None:
    report = json.loads((done.home / "checkpoints" / "bad" / "test.json").read_text())
    assert report["photos"] == 5 * 3 - 2 + len(READABLE)  # one vanished, one changed
    rows = {row["path"]: row for row in read_csv(done.home / "tested.csv")}
    for name, reason in REASONS.items():
        assert reason in rows[f"rose/{name}"]["error"], name


def test_predict_gives_every_file_a_row(done: Done) -> None:
    rows = {row["path"]: row for row in read_csv(done.home / "checkpoints" / "bad" / "predictions.csv")}
    assert set(rows) == {*READABLE, *REASONS, "0.png", "1.png", "2.png"}
    for name in READABLE:
        assert rows[name]["label"] in KINDS, name
        assert rows[name]["error"] == "", name
    for name, reason in REASONS.items():
        assert reason in rows[name]["error"], name
        assert rows[name]["label"] == rows[name]["rose"] == rows[name]["unlike"] == ""


def test_what_can_be_read_is_read_as_its_viewer_shows_it(done: Done, tmp_path: Path) -> None:
    """Each photo's probabilities are those of a plain PNG that Pillow writes of what it sees."""
    plain, names = tmp_path / "plain", {}
    plain.mkdir()
    for number, (name, data) in enumerate(READABLE.items()):
        if name != "16-bit.png":  # Pillow cuts 16 bits off
            names[name] = f"{number:02}.png"
            shown = ImageOps.exif_transpose(Image.open(BytesIO(data)))
            shown.convert("RGB").save(plain / names[name])
    run, out = done.home / "checkpoints" / "bad", tmp_path / "plain.csv"
    before = {row["path"]: row for row in read_csv(run / "predictions.csv")}
    command = ["predict", "--ckpt_path", str(run / "best.ckpt"), "--data.predict_root", str(plain)]
    assert main([*command, "--out", str(out), "--data.workers", "0"]) == 0
    after = {row["path"]: row for row in read_csv(out)}
    for name, other in names.items():
        for kind in KINDS:
            assert float(before[name][kind]) == pytest.approx(float(after[other][kind]), abs=0.01), name


def test_a_spreadsheet_takes_no_name_for_a_formula(done: Done) -> None:
    with open(done.home / "tested.csv", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in cells)


FIT = [
    "fit", "--data.image_size", "32", "--data.workers", "0", "--model.weights", "null", "--export", "none",
    "--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "0", "--trainer.accelerator", "cpu",
    "--trainer.devices", "1", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return clean(tmp_path / "set")


def test_unreadable_photos_can_be_an_error(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "rose" / "text.jpg").write_text("no picture")
    strict = [*FIT, "--data.root", "set", "--data.unreadable", "error"]
    assert main(strict) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "1 files below 'set' cannot be read" in said
    assert "'rose/text.jpg' (not a picture in a known format)" in said
    (inside / "rose" / "text.jpg").unlink()
    assert main(strict) == 0


def test_a_class_that_falls_empty_is_an_error(
    inside: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(inside / "tulip")
    (inside / "tulip").mkdir()
    (inside / "tulip" / "torn.jpg").write_bytes(jpeg(1)[:500])
    assert main([*FIT, "--data.root", "set"]) == 1
    assert "Left out: tulip/torn.jpg (truncated" in caplog.text
    assert "class 'tulip' in 'set' has 0 usable photos" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_of_nothing_readable(inside: Path, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = ["--ckpt_path", str(done.home / "checkpoints" / "bad" / "best.ckpt")]
    (inside / "other" / "rose").mkdir(parents=True)
    (inside / "other" / "rose" / "text.jpg").write_text("no picture")
    assert main(["predict", *ckpt, "--data.predict_root", str(inside / "other")]) == 1
    said = capsys.readouterr()
    assert "not a picture" in said.out
    assert "can be read as a photo" in said.err.splitlines()[-1]
    assert main(["test", *ckpt, "--data.test_root", str(inside / "other")]) == 1
    assert "no photo could be read" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: (root / "loop").symlink_to(root), "leads back above itself"),
        (lambda root: (root / "a\nb").mkdir(), "cannot be printed"),
    ],
)
def test_odd_class_folders_are_named(
    inside: Path, capsys: pytest.CaptureFixture[str], make: Any, message: str
) -> None:
    make(inside)
    assert main([*FIT, "--data.root", "set"]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_progressive_jpeg_of_many_scans_is_not_decoded(tmp_path: Path) -> None:
    """But one of ten is, whatever stands in its other segments."""
    usual = encoded(PHOTO, "JPEG", progressive=True)
    file = tmp_path / "usual.jpg"
    file.write_bytes(usual[:2] + app1(b"\xff\xda" * 50) + usual[2:])
    assert usual.count(b"\xff\xda") == 10
    assert read_photo(file).shape == (3, 64, 64)

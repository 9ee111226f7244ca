"""`audit --apply FILE --to DIR`: a clean copy, whole or not at all, and nothing in the folder is changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowers_pl.audit.clean_copy import copy_clean
from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import sha256_of, write_csv
from flowers_pl.data.reviews import HEADER, Decision


def tree(root: Path) -> dict[str, bytes]:
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in class folders; what is in them is of no account."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "rose/1.jpg", "rose/2.jpg", "rose/sub/3.jpg", "tulip/1.jpg", "tulip/1 (2).JPG", "tulip/4.jpg", "x.txt"
    ):  # fmt: skip
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_text(name)
    return tmp_path / "photos"


def decide(root: Path, *decisions: tuple[str, str, str]) -> str:
    rows = [Decision(path, action, label, sha256_of(root / path)) for path, action, label in decisions]
    write_csv("review.csv", HEADER, rows)
    return "review.csv"


def apply(root: Path, *more: str) -> int:
    return main(["audit", "--data.root", str(root), "--apply", "review.csv", *more])


def test_the_copy_is_as_decided_and_the_folder_as_it_was(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.utime(root / "rose/2.jpg", (1e9, 1e9))
    decide(
        root,
        ("rose/1.jpg", "relabel", "tulip"), ("rose/sub/3.jpg", "relabel", "tulip"),
        ("tulip/4.jpg", "exclude", ""), ("rose/2.jpg", "keep", ""),
    )  # fmt: skip
    before = tree(root)
    assert apply(root, "--to", "new/clean") == 0
    assert tree(root) == before
    assert {name: content.decode() for name, content in tree(Path("new/clean")).items()} == {
        "rose/2.jpg": "rose/2.jpg",
        "tulip/1.jpg": "tulip/1.jpg",
        "tulip/1 (2).JPG": "tulip/1 (2).JPG",
        "tulip/1 (3).jpg": "rose/1.jpg",  # the names that it might have are taken, one in capitals
        "tulip/sub/3.jpg": "rose/sub/3.jpg",
    }
    assert Path("new/clean/rose/2.jpg").stat().st_mtime == 1e9
    assert os.listdir("new") == ["clean"]
    assert "rose/1.jpg becomes tulip/1 (3).jpg, because there is another tulip/1.jpg" in caplog.text


def test_an_empty_folder_will_do(root: Path) -> None:
    decide(root, ("tulip/4.jpg", "exclude", ""))
    Path("clean").mkdir()
    assert apply(root, "--to", "clean") == 0
    assert len(tree(Path("clean"))) == 5


def test_photos_stay_on_their_side_of_a_split(root: Path) -> None:
    sides = Path("sides")
    shutil.copytree(root, sides / "train", ignore=shutil.ignore_patterns("*.txt"))
    (sides / "val/rose").mkdir(parents=True)
    (sides / "val/rose/9.jpg").write_text("9")
    decide(sides, ("val/rose/9.jpg", "relabel", "tulip"))
    assert apply(sides, "--to", "clean") == 0
    assert "val/tulip/9.jpg" in tree(Path("clean"))


def test_a_new_class_and_one_that_is_gone_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    decide(root, *((path, "relabel", "oxeye") for path in tree(root) if path.startswith("rose")))
    assert apply(root, "--to", "clean") == 0
    assert "new classes: oxeye." in caplog.text
    assert "classes of which no photo is left: rose." in caplog.text


def test_rows_that_do_not_fit_are_named_and_not_used(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    decide(root, ("tulip/4.jpg", "exclude", ""), ("tulip/1.jpg", "exclude", ""))
    (root / "tulip/4.jpg").write_text("another")
    (root / "tulip/1.jpg").unlink()
    assert apply(root, "--to", "clean") == 0
    assert "tulip/4.jpg" in tree(Path("clean"))
    assert "row of tulip/4.jpg is not used, because it is another file" in caplog.text
    assert "row of tulip/1.jpg is not used, because it is missing" in caplog.text


def test_what_is_no_file_is_named_and_not_copied(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    decide(root, ("tulip/4.jpg", "exclude", ""))
    (root / "rose/dangling.jpg").symlink_to("nowhere")
    os.mkfifo(root / "rose/pipe.jpg")
    assert apply(root, "--to", "clean") == 0
    assert len(tree(Path("clean"))) == 5
    for name in ("dangling", "pipe"):
        assert f"rose/{name}.jpg is not copied, because it is no file" in caplog.text


@pytest.mark.parametrize("label", ["../rose", "a/b", "..", ".hidden", "a\\b", "new\nline", "x" * 256])
def test_a_label_that_is_no_folder_name_is_refused(root: Path, label: str) -> None:
    decide(root, ("rose/1.jpg", "relabel", "x"))
    Path("review.csv").write_text(Path("review.csv").read_text().replace(",x,", f',"{label}",'))
    with pytest.raises(FlowersError, match="is no plain name of a folder; correct it"):
        copy_clean(root, "review.csv", Path("clean"))
    assert sorted(os.listdir()) == ["photos", "review.csv"]


def test_spaces_around_a_label_do_not_count(root: Path) -> None:
    decide(root, ("rose/1.jpg", "relabel", "x"))
    Path("review.csv").write_text(Path("review.csv").read_text().replace(",x,", ',"rose ",'))
    copy_clean(root, "review.csv", Path("clean"))
    assert tree(Path("clean")) == {name: data for name, data in tree(root).items() if name != "x.txt"}


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--to", "photos/clean"], "is inside --data.root, which stays as it is"),
        (["--to", "photos"], "is inside --data.root"),
        (["--to", "."], "is not empty; empty it, or choose a folder that is not there"),
        (["--to", "review.csv"], "is a file; choose another name"),
        ([], "--apply makes a clean copy of the folder together with --to DIR; give both"),
    ],
)
def test_a_folder_that_will_not_do_is_refused(
    root: Path, args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(root, ("rose/1.jpg", "exclude", ""))
    before = tree(Path())
    assert apply(root, *args) == 1
    assert sentence in capsys.readouterr().err
    assert tree(Path()) == before


def test_a_link_into_the_folder_is_no_way_around(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decide(root, ("rose/1.jpg", "exclude", ""))
    Path("link").symlink_to(root)
    assert apply(root, "--to", "link/clean") == 1
    assert "is inside --data.root" in capsys.readouterr().err


def test_two_names_for_one_file_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system where names that differ in case are one; here two targets are made one."""
    decide(root, ("rose/1.jpg", "keep", ""))
    plan = {"rose/1.jpg": "rose/A.jpg", "rose/2.jpg": "rose/A.jpg"}
    monkeypatch.setattr("flowers_pl.audit.clean_copy.plan_copy", lambda *given: plan)
    with pytest.raises(FlowersError, match=r"rose/A.jpg': File exists\); nothing was left there"):
        copy_clean(root, "review.csv", Path("clean"))
    assert sorted(os.listdir()) == ["photos", "review.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [pytest.param(signal.SIGKILL, marks=pytest.mark.release), signal.SIGTERM])
def test_a_kill_leaves_no_half_folder(root: Path, kill: signal.Signals) -> None:
    decide(root, ("rose/1.jpg", "exclude", ""))
    for number in range(3000):
        (root / "tulip" / f"many_{number}.jpg").write_bytes(bytes(20_000))
    command = [sys.executable, "-m", "flowers_pl", "audit", "--data.root", str(root)]
    hidden = Path(".clean.flowers_pl-unfinished")
    process = subprocess.Popen([*command, "--apply", "review.csv", "--to", "clean"])
    deadline = time.monotonic() + 60
    while not list(hidden.glob("tulip/many_*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(kill)
    assert process.wait(60) in (-kill, 128 + kill)
    assert not Path("clean").exists()
    assert hidden.exists() == (kill == signal.SIGKILL)  # nothing can tidy up then
    assert apply(root, "--to", "clean") == 0  # which does
    assert len(tree(Path("clean"))) == 3005
    assert sorted(os.listdir()) == ["clean", "photos", "review.csv"]


def test_two_at_once_do_not_mix(root: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    decide(root, ("rose/1.jpg", "exclude", ""))
    hidden = Path(".clean.flowers_pl-unfinished")
    hidden.mkdir()
    handle = os.open(hidden, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(FlowersError, match="another process is writing"):
        copy_clean(root, "review.csv", Path("clean"))
    os.close(handle)
    copy_clean(root, "review.csv", Path("clean"))
    assert len(tree(Path("clean"))) == 5

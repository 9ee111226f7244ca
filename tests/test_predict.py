"""`predict` writes its table as rows come, goes on after a kill, and shares the photos among processes."""

from __future__ import annotations

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
from interrupting import Circumstances, run
from test_cli import failure

from flowers_pl import main
from flowers_pl.core.files import read_json, write_csv, write_json
from flowers_pl.data.batches import Prediction
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.sampling import WholeBatches
from flowers_pl.evaluation.growing_table import GrowingTable
from flowers_pl.evaluation.predictions import PredictionTable, prediction_rows, write_predictions
from flowers_pl.runs.predicting import predict_exported

HERE = Path(__file__).parent
RUN = HERE / "data" / "run-0.1.0"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.workers", "0"]
FOUR = ["--data.predict_root", "photos", "--data.batch_size", "2"]  # 2 x 2 photos a batch
PREDICT = ["--ckpt_path", "run/best.ckpt", *FOUR, *QUIET]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the run of 0.1.0 and 31 photos, one of which cannot be read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copy(RUN / "best.ckpt", tmp_path / "run")
    for number, photo in enumerate(sorted((RUN / "drawings").glob("*/*.png"))[:30]):
        kind = tmp_path / "photos" / f"{number % 3}"
        kind.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, kind)
    (tmp_path / "photos" / "1" / "torn, and\rodd.jpg").write_text("no picture")
    return tmp_path


@pytest.fixture
def whole(home: Path) -> bytes:
    """The table of a run that was not disturbed."""
    assert main(["predict", *PREDICT, "--out", "whole.csv"]) == 0
    return Path("whole.csv").read_bytes()


def break_off(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the disk be full after some batches."""
    add, batches = GrowingTable.add, []

    def limited(self: GrowingTable, *args: Any, **named: Any) -> None:
        batches.append(0)
        if len(batches) > after:
            raise OSError(28, "No space left on device")
        add(self, *args, **named)

    monkeypatch.setattr(GrowingTable, "add", limited)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "said.txt")


def test_a_growing_table_has_the_bytes_of_write_csv(tmp_path: Path) -> None:
    header = ["path", "kind"]
    plain = [["a.jpg", "x"], ["=b,c.jpg", 'y"'], ["d\ne\udce8", "\x1b"], ["", "-1"]]
    for name, rows in (("plain", plain), ("returns", [*plain, ["f\r", ""]])):
        write_csv(tmp_path / "whole.csv", header, rows)
        table = GrowingTable(tmp_path / f"{name}.csv", header, {}, quoted=name == "returns")
        with table.growing(resume=False):
            for row in rows:
                table.add([row])
        assert table.file.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_rows_are_on_the_disk_before_the_table_is_done(tmp_path: Path) -> None:
    paths = [f"{number}.jpg" for number in range(5)]
    shares = np.random.default_rng(0).dirichlet(np.ones(2), 5)
    batches = [
        Prediction(torch.tensor(rows), torch.tensor(shares[rows]), unreadable, torch.ones(len(rows)))
        for rows, unreadable in (([0, 1], []), ([3], [(2, "empty file")]), ([4], []))
    ]
    table = PredictionTable(tmp_path / "p.csv", paths, ["rose", "tulip"], True, {})
    with table.growing(resume=False):
        for number, batch in enumerate(batches):
            table.add_predictions([batch])
            assert table.partial.read_bytes().count(b"\n") == [3, 5, 6][number]
            assert not table.file.exists()
    write_predictions(
        tmp_path / "whole.csv", prediction_rows(batches, paths, ["rose", "tulip"]), ["rose", "tulip"]
    )
    assert table.file.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert left(tmp_path) == ["p.csv", "whole.csv"]


@pytest.mark.parametrize(
    ("photos", "ranks", "first"), [(9, 1, 0), (9, 2, 4), (10, 3, 0), (1, 3, 0), (13, 2, 12)]
)
def test_ranks_take_whole_batches_in_turn(photos: int, ranks: int, first: int) -> None:
    of_rank = [list(WholeBatches(photos, 4, rank, ranks, first)) for rank in range(ranks)]
    assert len({len(keys) for keys in of_rank}) == 1  # or one would wait for the others
    assert all(len(keys) == len(WholeBatches(photos, 4, 0, ranks, first)) for keys in of_rank)
    dealt = [keys[turn].rows.tolist() for turn in range(len(of_rank[0])) for keys in of_rank]
    alone = [key.rows.tolist() for key in WholeBatches(photos, 4, first=first)]
    assert [rows for rows in dealt if rows] == alone
    assert [row for rows in alone for row in rows] == list(range(first, photos))
    for turn in range(len(of_rank[0])):
        assert {keys[turn].total for keys in of_rank} == {sum(len(keys[turn].rows) for keys in of_rank)}


@pytest.mark.parametrize("folder", ["new", "photos"])
def test_a_run_that_broke_off_goes_on_and_ends_with_the_same_bytes(
    folder: str, home: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the folder of the photos too: what is unfinished there is no photo."""
    command = ["predict", *PREDICT, "--out", f"{folder}/x.csv"]
    with monkeypatch.context() as full:
        break_off(full, after=3)
        assert "make room" in failure(capsys, *command)
    assert left(home / folder) == [".x.csv.partial", ".x.csv.partial.json"]
    unfinished = Path(folder, ".x.csv.partial")
    partial = unfinished.read_bytes()
    assert whole.startswith(partial)
    assert partial.count(b"\n") == 13
    unfinished.write_bytes(partial + b"half a r")
    said = failure(capsys, *command)
    assert ".x.csv.partial' has 12 rows" in said
    assert "add --resume" in said
    assert main([*command, "--resume"]) == 0
    assert Path(folder, "x.csv").read_bytes() == whole
    assert left(home / folder) == ["x.csv"]


@pytest.mark.slow
def test_a_table_of_something_else_is_not_gone_on_with(
    home: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as full:
        break_off(full, after=3)
        failure(capsys, "predict", *PREDICT, "--out", "x.csv")
    resume = ["predict", *PREDICT, "--out", "x.csv", "--resume"]
    others: dict[str, list[str]] = {
        "--data.batch_size": ["--data.batch_size", "3"],
        "--trainer.precision": ["--trainer.precision", "64-true"],
        "--data.limits": ["--data.limits.max_pixels", "1000"],
        "--data.predict_root": ["--data.predict_root", "photos/1"],
        "--trainer.limit_predict_batches": ["--trainer.limit_predict_batches", "1"],
    }
    for option, changed in others.items():
        assert option in failure(capsys, *resume, *changed)
    state = torch.load("run/best.ckpt", weights_only=True)
    torch.save(state | {"global_step": 9}, "run/other.ckpt")
    assert "--ckpt_path" in failure(capsys, *resume, "--ckpt_path", "run/other.ckpt")
    shutil.copy("photos/0/" + os.listdir("photos/0")[0], "photos/0/new.png")
    assert "--data.predict_root" in failure(capsys, *resume)
    Path("photos/0/new.png").unlink()
    note = read_json(Path(".x.csv.partial.json"))
    write_json(Path(".x.csv.partial.json"), note | {"done": [12, 10**9, 1]})
    assert "remove both" in failure(capsys, *resume)
    write_json(Path(".x.csv.partial.json"), note)
    assert main(resume) == 0
    assert Path("x.csv").read_bytes() == whole


def test_what_nobody_began_is_begun_and_nothing_is_left_of_nothing(
    home: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", *PREDICT, "--out", "x.csv", "--resume"]) == 0
    assert Path("x.csv").read_bytes() == whole
    assert "Nothing was evaluated" in failure(
        capsys, "predict", *PREDICT, "--out", "y.csv", "--trainer.limit_predict_batches", "0"
    )
    assert left(home) == ["whole.csv", "x.csv"]


@pytest.mark.parametrize(("limit", "batches"), [(1, 1), (3, 3), (99, 8), (0, 0), (0.5, 4), (1.0, 8)])
def test_an_exported_model_keeps_to_the_limit_as_the_trainer_does(
    home: Path, limit: float, batches: int
) -> None:
    data = FlowersDataModule(predict_root="photos", batch_size=2, workers=0, image_size=32)
    data.classes = ["daisy", "rose", "tulip"]
    data.setup("predict")

    def exported(photos: torch.Tensor) -> np.ndarray:
        return np.full((len(photos), 3), 1 / 3, np.float32)

    assert len(list(predict_exported(exported, data, limit))) == batches  # type: ignore[arg-type]


def test_two_processes_do_not_write_one_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = GrowingTable("x.csv", ["path"], {})
    with table.growing(resume=False):
        assert "by another process" in failure(capsys, "predict", *PREDICT, "--out", "x.csv")
        table.add([["a.jpg"]])
    assert Path("x.csv").read_text() == "path\na.jpg\n"


def test_what_is_no_file_is_not_replaced(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    assert "--out" in failure(capsys, "predict", *PREDICT, "--out", "pipe")
    Path("kept.csv").write_text("old")
    Path("link.csv").symlink_to("kept.csv")
    assert main(["predict", *PREDICT, "--out", "link.csv"]) == 0
    assert Path("link.csv").is_symlink()
    assert Path("kept.csv").read_text().startswith('"path"')


def test_a_switch_takes_no_value_from_the_option_after_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--data.batch_size", "x"]
    for args in (["--resume", *wrong], [*wrong, "--resume"]):
        assert "--data.batch_size must be a whole number, not x" in failure(
            capsys, "predict", *PREDICT, *args
        )
    said = failure(capsys, "predict", *PREDICT, "--resume", "maybe")
    assert "--resume must be true or false, not maybe" in said


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["on_predict_batch_end"], marks=pytest.mark.slow),
        pytest.param(
            ["before fsync", "before rename to .x.csv.partial.json", "after rename to x.csv"],
            marks=pytest.mark.release,
        ),
    ],
)
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    home: Path, whole: bytes, names: list[str]
) -> None:
    noted = home / "moments.txt"
    args = ["predict", *PREDICT, "--out", "x.csv"]
    code, said = run(args, home, Circumstances(noted=noted))
    assert code == 0, said
    moments = noted.read_text().splitlines()
    for name in names:
        places = [place for place, moment in enumerate(moments) if moment == name]
        Path("x.csv").unlink(missing_ok=True)
        code, _ = run(args, home, Circumstances({places[len(places) // 2]: signal.SIGKILL}))
        assert code == -signal.SIGKILL
        code, said = run([*args, "--resume"], home)
        assert code == 0, (name, said)
        assert Path("x.csv").read_bytes() == whole, name
        assert not [file for file in left(home) if "partial" in file], name
    code, said = run(args, home, Circumstances({len(moments) // 2: signal.SIGTERM}))
    assert (code, "--resume goes on from here" in said) == (143, True)


def start(home: Path, command: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, which may start others."""
    return subprocess.run(
        [sys.executable, "-m", "flowers_pl", command, *args],
        cwd=home,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.release
@pytest.mark.timeout(900)
def test_two_processes_write_the_table_of_one_and_go_on_after_one_is_killed(home: Path, whole: bytes) -> None:
    args = [*PREDICT, "--out", "x.csv", "--trainer.callbacks", "probe.Probe"]
    done = start(home, "predict", *args, "--trainer.devices", "2", PROBE_SIGNAL=f"1:2:{signal.SIGKILL}")
    assert done.returncode not in (0, 143), done.stderr
    assert read_json(Path(".x.csv.partial.json"))["done"][0] == 16, done.stderr  # two batches of each
    args = [*PREDICT, "--out", "x.csv"]
    done = start(home, "predict", *args, "--trainer.devices", "3", "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("30 predictions, 1 file that cannot be read") == 1  # one process speaks
    assert Path("x.csv").read_bytes() == whole
    assert left(home) == ["whole.csv", "x.csv"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "batch_size",
    ["3", pytest.param("64", marks=pytest.mark.release)],  # with 64 the second has no photo
)
def test_test_and_validate_by_two_processes_are_exact(
    home: Path, batch_size: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said: dict[tuple[str, str], tuple[str, list[str]]] = {}  # on standard output, and line by line in the log
    left_by: dict[str, list[bytes]] = {}
    data = ["--data.root", str(RUN / "drawings"), "--data.test_root", str(RUN / "drawings")]
    data += ["--data.batch_size", batch_size]
    for devices in ("1", "2"):
        for command in ("test", "validate"):
            args = ["--ckpt_path", "run/best.ckpt", *QUIET, *data, "--trainer.devices", devices]
            if devices == "1":
                caplog.clear()
                assert main([command, *args]) == 0
                said[command, devices] = capfd.readouterr().out, caplog.messages
            else:
                done = start(home, command, *args)
                assert done.returncode == 0, done.stderr
                said[command, devices] = done.stdout, done.stderr.splitlines()
        left_by[devices] = [Path("run", name).read_bytes() for name in ("predictions.csv", "test.json")]
    assert left_by["1"] == left_by["2"]
    assert said["test", "1"] == said["test", "2"]
    assert said["validate", "1"] == said["validate", "2"]
    assert said["validate", "2"][0].count("accuracy") == 1

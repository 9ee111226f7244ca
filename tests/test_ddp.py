"""Several processes, on one machine and on two, do together what one does; when one dies, a resume works."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from probe import FIRST_STEPS
from strong import ALL_ON
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers_pl.cli.app import main
from flowers_pl.core.files import write_csv
from flowers_pl.core.names import KEY
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.weight_average import AVERAGE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HERE = str(Path(__file__).parent)
STRONG = {
    "stored_size": 48,
    "augmentation": {"crop": 0.35, "contrast": 0.2, "saturation": 0.2, "weak_epochs": 1},
}


def write_settings(home: Path, drawings: Path, **changed: Any) -> None:
    """Two stages of two epochs, in small.yaml; 5 photos validate and 45 train, in uneven shares."""
    settings = {
        "data": {
            "root": str(drawings),
            "image_size": 32,
            "batch_size": changed.pop("batch_size", 10),
            "val_fraction": 0.1,
            "workers": 0,
            **changed.pop("data", {}),
        },
        "model": {"weights": None},
        "unfreeze": {"head_epochs": 2, "top_epochs": 2},
        "export": "none",
        "trainer": {
            "accelerator": "cpu",
            "callbacks": [{"class_path": "probe.Probe"}],
            "enable_progress_bar": False,
            "precision": "32-true",
            **changed,
        },
    }
    (home / "small.yaml").write_text(yaml.safe_dump(settings))


def start(
    home: Path, *args: str, torchrun: list[str] | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start a `fit` in `home`, by Lightning's own launcher or by torchrun."""
    launcher = [] if torchrun is None else ["-m", "torch.distributed.run", *torchrun]
    path = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "flowers_pl", "fit", *args],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it printed."""
    try:
        said, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def fit(home: Path, *args: str, torchrun: list[str] | None = None, **environment: str) -> str:
    """A `fit` that ends well, and what it printed."""
    code, said = finish(start(home, *args, torchrun=torchrun, **environment))
    assert code == 0, said
    return said


def fit_here(home: Path, caplog: pytest.LogCaptureFixture, *args: str) -> str:
    """A `fit` by this process, which has imported all libraries already, and what it logged."""
    caplog.clear()
    with chdir(home):
        assert main(["fit", *args]) == 0
    return caplog.text


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All weights of a run, and beside those that are an average the ones that were trained."""
    checkpoint = read_checkpoint(run / "last.ckpt")
    trained = checkpoint.get(AVERAGE, {}).get("trained", {})
    return checkpoint["state_dict"] | {f"trained {name}": weight for name, weight in trained.items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference among all weights; NaN where there is one among them."""
    assert one.keys() == other.keys()
    differences = [
        (one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-12)
        for name in one
        if one[name].is_floating_point()
    ]
    return float(torch.stack(differences).max())


def figures(run: Path) -> list[dict[str, float]]:
    rows = read_table(run / "metrics.csv")
    return [{name: row[name] for name in sorted(set(row) - {"images_per_second"})} for row in rows]


def pictures(run: Path, name: str) -> list[bytes]:
    """What TensorBoard has of a picture: a PNG for each time it was drawn."""
    events = EventAccumulator(str(run), {"images": 0}).Reload()
    return [image.encoded_image_string for image in events.Images(name)]


@pytest.mark.parametrize(
    ("devices", "batch_size", "data"),
    [
        (2, 4, {}),
        pytest.param(3, 6, {}, marks=pytest.mark.release),
        pytest.param(2, 4, STRONG, marks=pytest.mark.release),
    ],
)
def test_any_number_of_processes_gives_the_same_run(
    tmp_path: Path,
    drawings: Path,
    devices: int,
    batch_size: int,
    data: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In float64, so that Adam has no rounding to amplify.

    With batches of four, an epoch's last one has one photo, and one of two ranks none.
    """
    for number, strategy in ((1, "auto"), (devices, "ddp")):
        many = {"devices": number, "strategy": strategy, "precision": "64-true", "batch_size": batch_size}
        many["data"] = data
        write_settings(tmp_path, drawings, **many)
        args = ("--config", "small.yaml", "--run_name", str(number))
        said = fit_here(tmp_path, caplog, *args) if number == 1 else fit(tmp_path, *args)
        assert said.count("Stage 2 trains") == 1  # one rank speaks
    one, several = (tmp_path / "checkpoints" / str(number) for number in (1, devices))
    difference = largest_difference(weights(one), weights(several))
    print(f"float64, 1 and {devices} processes: weights differ by {difference:.2g} at most")
    assert difference < 1e-10
    for row, other in zip(figures(one), figures(several), strict=True):
        assert row == pytest.approx(other, rel=1e-5)  # metrics are float32
    for picture in ("val/confusion_matrix", "best/confusion_matrix", "best/misclassified"):
        sheets = [pictures(run, picture) for run in (one, several)]
        assert sheets[0] == sheets[1], picture
        assert len(sheets[0]) == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.release
def test_several_processes_train_the_strong_recipe_as_one_does(tmp_path: Path, drawings: Path) -> None:
    """By one rule for all ranks: rates by depth, AdamW, warm-up, cosine, clipping and the average."""
    for number, strategy in ((1, "auto"), (2, "ddp")):
        many = {"devices": number, "strategy": strategy, "precision": "64-true", "batch_size": 4}
        write_settings(tmp_path, drawings, **many, **ALL_ON["trainer"])
        settings = yaml.safe_load((tmp_path / "small.yaml").read_text())
        for group in ("model", "unfreeze", "average"):
            settings[group] = settings.get(group, {}) | ALL_ON[group]
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
        fit(tmp_path, "--config", "small.yaml", "--run_name", str(number))
    one, two = (tmp_path / "checkpoints" / str(number) for number in (1, 2))
    difference = largest_difference(weights(one), weights(two))
    print(f"float64, 1 and 2 processes, all parts on: weights differ by {difference:.2g} at most")
    assert difference < 1e-8
    for row, other in zip(figures(one), figures(two), strict=True):
        assert row == pytest.approx(other, rel=1e-5)  # metrics are float32


def write_soft_labels(root: Path, file: Path) -> None:
    """Write other probabilities for each photo below a folder."""
    photos = sorted(root.glob("*/*.png"))
    classes = sorted({photo.parent.name for photo in photos})
    shares = np.random.default_rng(0).dirichlet(np.ones(len(classes)), len(photos)).tolist()
    rows = [[str(photo.relative_to(root)), *row] for photo, row in zip(photos, shares, strict=True)]
    write_csv(file, ["path", *classes], rows)


@pytest.mark.release
@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_classes_are_balanced_over_all_processes_together(
    tmp_path: Path, drawings: Path, balance: str
) -> None:
    shutil.copytree(drawings, tmp_path / "few")
    for number in range(3, 10):  # of ten roses three are left
        (tmp_path / "few" / "rose" / f"rose_{number:04d}.png").unlink()
    write_soft_labels(tmp_path / "few", tmp_path / "soft.csv")
    changed = ["--data.balance", balance, "--model.label_smoothing", "0.1", "--unfreeze.head_epochs", "1"]
    changed += ["--data.soft_labels", "soft.csv"]
    for number, strategy in ((1, "auto"), (2, "ddp")):
        many = {"devices": number, "strategy": strategy, "precision": "64-true"}
        write_settings(tmp_path, tmp_path / "few", **many)
        fit(tmp_path, "--config", "small.yaml", "--run_name", str(number), *changed)
    one, two = (tmp_path / "checkpoints" / str(number) for number in (1, 2))
    assert largest_difference(weights(one), weights(two)) < 1e-10
    for row, other in zip(figures(one), figures(two), strict=True):
        assert row == pytest.approx(other, rel=1e-5)  # metrics are float32
    first, second = (read_checkpoint(run / "best.ckpt")[KEY]["unlike"] for run in (one, two))
    assert first["limit"] == pytest.approx(second["limit"], rel=1e-4)
    assert torch.allclose(first["mean"], second["mean"], atol=1e-5)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> list[Path]:
    """A run in float32 by two torchrun agents on loopback, as on two machines that have no disk in common.

    Each has photos, a cache and a working folder of its own.
    """
    homes = [tmp_path_factory.mktemp(f"machine{rank}") for rank in range(2)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []
    for rank, home in enumerate(homes):
        shutil.copytree(drawings, home / "photos")
        write_settings(home, Path("photos"), devices=1, num_nodes=2, strategy="ddp")
        torchrun = ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}"]
        torchrun += ["--master_addr=127.0.0.1", f"--master_port={port}"]
        args = ("--config", "small.yaml", "--run_name", "two")
        agents.append(start(home, *args, torchrun=torchrun, XDG_CACHE_HOME=str(home / "cache")))
    for agent in agents:
        code, said = finish(agent)
        assert code == 0, said
        assert "strides" not in said  # gradients are laid out like the weights, as DDP wants them
    return homes


def test_two_machines_need_no_disk_in_common(machines: list[Path]) -> None:
    for home in machines:
        assert len(list((home / "cache").glob("flowers_pl/photos-*/pixels-*"))) == 1
    names = {file.name for file in (machines[0] / "checkpoints" / "two").iterdir()}
    assert names > {"best.ckpt", "last.ckpt", "metrics.csv", "config.yaml", "split.csv"}
    assert not (machines[1] / "checkpoints").exists()
    first, second = (
        (home / f"hashes-{rank}.txt").read_text().splitlines() for rank, home in enumerate(machines)
    )
    assert first == second  # the ranks' weights are the same after each epoch, dropout and all
    assert len(set(first)) == 4


@pytest.mark.release
def test_float32_stays_close_in_the_first_steps_of_each_stage(
    machines: list[Path], tmp_path: Path, drawings: Path
) -> None:
    """Later on Adam amplifies what rounding leaves."""
    write_settings(tmp_path, drawings)
    fit(tmp_path, "--config", "small.yaml", "--run_name", "one")
    for step in FIRST_STEPS:
        one, two = (
            torch.load(home / f"step-{step}.pt", weights_only=True) for home in (tmp_path, machines[0])
        )
        difference = largest_difference(one, two)
        print(f"float32, 1 and 2 processes, step {step}: weights differ by {difference:.2g} at most")
        assert difference < 1e-5


def assert_same(one: Path, other: Path) -> None:
    """Two runs by two ranks each have the same weights, bit for bit, and the same figures."""
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert figures(one) == figures(other)


@pytest.mark.release
def test_a_run_of_two_ranks_is_stopped_loses_each_rank_and_goes_on(
    machines: list[Path], tmp_path: Path, drawings: Path
) -> None:
    write_settings(tmp_path, drawings, devices=2, strategy="ddp")
    run = tmp_path / "checkpoints" / "two"
    advice = "python -m flowers_pl fit --ckpt_path checkpoints/two/last.ckpt"

    stopped = start(
        tmp_path, "--config", "small.yaml", "--run_name", "two", PROBE_SIGNAL=f"1:6:{signal.SIGTERM}"
    )
    code, said = finish(stopped)
    assert (code, said.splitlines()[-1]) == (143, f"flowers_pl: stopped by SIGTERM; resume with: {advice}")
    assert read_checkpoint(run / "last.ckpt")["global_step"] == 7

    resume = ("--ckpt_path", "checkpoints/two/last.ckpt")
    code, said = finish(start(tmp_path, *resume, PROBE_SIGNAL=f"1:12:{signal.SIGKILL}"))
    assert code not in (0, 143)
    assert "Another process of this run has ended" in said or "terminated with code -9" in said

    code, said = finish(start(tmp_path, *resume, PROBE_SIGNAL=f"0:17:{signal.SIGKILL}"))
    assert code == -signal.SIGKILL  # and what it printed ends, for no process holds on to it
    assert "has died, so it ends" in said or "Another process of this run has ended" in said

    fit(tmp_path, *resume)
    assert_same(machines[0] / "checkpoints" / "two", run)


def test_torchrun_starts_a_run_again_that_lost_a_rank_and_it_goes_on(
    machines: list[Path], tmp_path: Path, drawings: Path
) -> None:
    write_settings(tmp_path, drawings, devices=2, strategy="ddp")
    torchrun = ["--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # or ranks may read where the dead ones listened
    said = fit(
        tmp_path,
        *("--config", "small.yaml", "--run_name", "two"),
        torchrun=torchrun,
        PROBE_SIGNAL=f"1:12:{signal.SIGKILL}",
        **own_store,
    )
    assert said.count("No weights") == 1  # it did not start anew
    assert_same(machines[0] / "checkpoints" / "two", tmp_path / "checkpoints" / "two")


LATE = """
import atexit, sys, tempfile, threading, time, torch
from flowers_pl.core.signals import end_rank

def hold_on():
    one = torch.ones(100)
    while True:
        one + one  # lets go of Python's lock and takes it again, as gloo's threads do

atexit.register(print, "cleaned up")
if len(sys.argv) == 2:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method="file://" + sys.argv[1])
for _ in range(4):
    threading.Thread(target=hold_on, daemon=True).start()
time.sleep(0.1)
print("done")
end_rank(7)
print("one process alone goes on")
"""


def test_a_rank_ends_with_its_own_exit_code_whatever_its_threads_do(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LATE, str(tmp_path / "store")], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "done\ncleaned up\n", "")
    alone = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert "one process alone goes on" in alone.stdout

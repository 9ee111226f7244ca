"""stopping.py and saving.py: runs that are killed or stopped at any moment go on as if they had not been."""

from __future__ import annotations

import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from comparing import assert_same_runs
from interrupting import Circumstances, fit
from PIL import Image
from strong import ALL_ON

pytestmark = pytest.mark.slow


class Whole(NamedTuple):
    """A run that nothing interrupts: its folder, its moments, how to start one like it, its seconds."""

    run: Path
    moments: list[str]
    args: list[str]
    seconds: float

    @property
    def home(self) -> Path:
        return self.run.parents[1]

    def moment(self, name: str, which: int) -> int:
        """The number of the moment of this name, counted from the first (0, 1, ...) or the last (-1, ...)."""
        return [number for number, one in enumerate(self.moments) if one == name][which]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Whole:
    """Two epochs of five batches in each stage, saved inside the epochs too."""
    return run_whole(tmp_path_factory.mktemp("whole"), drawings, {})


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Whole:
    """The same with all parts of the strong recipe on."""
    return run_whole(tmp_path_factory.mktemp("strong"), drawings, ALL_ON)


def run_whole(home: Path, drawings: Path, changed: dict[str, dict[str, Any]]) -> Whole:
    settings: dict[str, Any] = {
        "data": {"root": str(drawings), "image_size": 32, "batch_size": 8, "workers": 0},
        "model": {"weights": None},
        "unfreeze": {"head_epochs": 2, "top_epochs": 2},
        "export": "none",
        "save_every_n_steps": 2,
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": 32, "enable_progress_bar": False},
    }
    for group, some in changed.items():
        settings[group] = settings.get(group, {}) | some
    (home / "small.yaml").write_text(yaml.safe_dump(settings))
    args = ["--config", "small.yaml", "--run_name"]
    fit([*args, "first"], home)  # the first one decodes
    start = time.monotonic()
    code, said = fit([*args, "whole"], home, Circumstances(noted=home / "moments.txt"))
    assert code == 0, said
    moments = (home / "moments.txt").read_text().splitlines()
    return Whole(home / "checkpoints" / "whole", moments, args, time.monotonic() - start)


@pytest.fixture
def part(whole: Whole) -> Iterator[Path]:
    """The folder of a run that is to be interrupted."""
    yield whole.home / "checkpoints" / "part"
    shutil.rmtree(whole.home / "checkpoints" / "part", ignore_errors=True)


@pytest.fixture
def strong_part(strong: Whole) -> Iterator[Path]:
    """The folder of a run by the strong recipe that is to be interrupted."""
    yield strong.home / "checkpoints" / "part"
    shutil.rmtree(strong.home / "checkpoints" / "part", ignore_errors=True)


def go_on(whole: Whole, part: Path) -> None:
    """Resume the run, or start it again where nothing was saved, and see that it ends like the whole one."""
    had = (part / "last.ckpt").exists()
    code, said = fit(["--ckpt_path", "checkpoints/part/last.ckpt"], whole.home)
    if not had:
        assert code == 1
        assert said.splitlines()[-1].startswith("flowers_pl: --ckpt_path: there is no checkpoint")
        assert "start the run again" in said
        code, said = fit([*whole.args, "part"], whole.home)
    assert code == 0, said
    assert "Traceback" not in said
    assert_same_runs(whole.run, part)


# ---------------------------------------------------------------- SIGKILL


LATER = pytest.mark.release


@pytest.mark.parametrize(
    ("moment", "which"),
    [
        pytest.param("on_fit_start", 0, marks=LATER),
        pytest.param("before rename to config.yaml", 0, marks=LATER),
        ("half written", 0),  # there is no checkpoint yet
        pytest.param("on_before_optimizer_step", 3, marks=LATER),  # stage 1, inside an epoch
        pytest.param("on_validation_batch_end", 0, marks=LATER),
        pytest.param("half written", 2, marks=LATER),  # the first best.ckpt
        pytest.param("after rename to best.ckpt", 0, marks=LATER),  # best.ckpt is ahead of last.ckpt
        pytest.param("before rename to last.ckpt", 2, marks=LATER),
        pytest.param("on_train_epoch_end", 1, marks=LATER),  # the boundary
        pytest.param("on_train_epoch_start", 2, marks=LATER),
        ("on_after_backward", 11),  # stage 2
        pytest.param("half written", -1, marks=LATER),
        pytest.param("before fsync", -1, marks=LATER),
        pytest.param("after rename to last.ckpt", -1, marks=LATER),  # trained, but not concluded
    ],
)
def test_a_killed_run_goes_on_as_if_never_stopped(whole: Whole, part: Path, moment: str, which: int) -> None:
    at = whole.moment(moment, which)
    code, said = fit([*whole.args, "part"], whole.home, Circumstances({at: signal.SIGKILL}))
    assert code == -signal.SIGKILL, said
    go_on(whole, part)


@pytest.mark.parametrize(
    ("moment", "which"),
    [
        pytest.param("on_before_optimizer_step", 3, marks=LATER),  # stage 1, inside an epoch
        pytest.param("on_train_epoch_end", 1, marks=LATER),  # the boundary
        pytest.param(
            "on_after_backward", 13, marks=LATER
        ),  # stage 2, inside an epoch, while the rates warm up
        pytest.param("half written", -1, marks=LATER),
    ],
)
def test_a_killed_run_with_a_schedule_goes_on_as_if_never_stopped(
    strong: Whole, strong_part: Path, moment: str, which: int
) -> None:
    at = strong.moment(moment, which)
    code, said = fit([*strong.args, "part"], strong.home, Circumstances({at: signal.SIGKILL}))
    assert code == -signal.SIGKILL, said
    go_on(strong, strong_part)


@pytest.mark.release
def test_a_run_killed_at_any_time_and_again_goes_on(whole: Whole, part: Path) -> None:
    chance = random.Random(0)
    fit([*whole.args, "part"], whole.home, killed_after=chance.uniform(0, whole.seconds))
    for _ in range(3):
        if (part / "last.ckpt").exists():
            after = chance.uniform(0, whole.seconds)
            fit(["--ckpt_path", "checkpoints/part/last.ckpt"], whole.home, killed_after=after)
    go_on(whole, part)


# ---------------------------------------------------------------- SIGTERM and Ctrl-C


@pytest.mark.release
@pytest.mark.parametrize(
    ("number", "code", "moment", "which", "saved"),
    [
        (signal.SIGINT, 130, "on_fit_start", 0, None),
        (signal.SIGTERM, 143, "on_after_backward", 6, (1, 7)),  # stage 1: after that batch
        (signal.SIGINT, 130, "on_before_zero_grad", 4, (0, 5)),  # an epoch's last batch: after validation
        (signal.SIGTERM, 143, "on_validation_batch_start", 2, (2, 15)),
        (signal.SIGINT, 130, "on_train_batch_start", 16, (3, 17)),  # stage 2
        (signal.SIGTERM, 143, "on_train_end", 0, (3, 20)),  # trained, but not concluded
    ],
)
def test_a_stopped_run_saves_and_says_how_to_go_on(
    whole: Whole, part: Path, number: int, code: int, moment: str, which: int, saved: tuple[int, int] | None
) -> None:
    from flowers_pl.training.checkpoint_files import read_checkpoint

    at = whole.moment(moment, which)
    ended, said = fit([*whole.args, "part"], whole.home, Circumstances({at: number}))
    assert ended == code, said
    assert "Traceback" not in said
    advice = "python -m flowers_pl fit --ckpt_path checkpoints/part/last.ckpt"
    last = said.splitlines()[-1]
    if saved is None:
        assert last.endswith("nothing was saved yet; start it again with the same command")
    else:
        assert last == f"flowers_pl: stopped by {signal.Signals(number).name}; resume with: {advice}"
        checkpoint = read_checkpoint(part / "last.ckpt")
        assert (checkpoint["epoch"], checkpoint["global_step"]) == saved
    go_on(whole, part)


def test_slurm_requeues_a_preempted_run_and_it_goes_on(whole: Whole, part: Path) -> None:
    bin_ = whole.home / "bin"
    bin_.mkdir()
    (bin_ / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {whole.home}/asked.txt\n')
    (bin_ / "scontrol").chmod(0o755)
    job = {
        "PATH": f"{bin_}:/usr/bin:/bin",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "flowers",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    preempted = {
        whole.moment("on_after_backward", 7): signal.SIGUSR1,
        whole.moment("on_after_backward", 12): signal.SIGTERM,
    }
    code, said = fit([*whole.args, "part"], whole.home, Circumstances(preempted, environment=job))
    assert code == 143, said
    assert (whole.home / "asked.txt").read_text() == "requeue 4711\n"
    assert "resume by adding --ckpt_path checkpoints/part/last.ckpt to the command that started it" in said
    again = Circumstances(environment={**job, "SLURM_RESTART_COUNT": "1"})
    code, said = fit([*whole.args, "part"], whole.home, again)
    assert code == 0, said
    assert "No weights" not in said  # it did not start anew
    assert_same_runs(whole.run, part)


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_ends_a_run_with_one_sentence_and_nothing_lost(whole: Whole, part: Path) -> None:
    at = whole.moment("on_after_backward", 6)
    fit([*whole.args, "part"], whole.home, Circumstances({at: signal.SIGTERM}))
    kept = {name: (part / name).read_bytes() for name in ("best.ckpt", "last.ckpt")}
    resume = ["--ckpt_path", "checkpoints/part/last.ckpt"]
    code, said = fit(resume, whole.home, Circumstances(file_limit=1_000_000))
    assert code == 1
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("flowers_pl: The checkpoint 'checkpoints/part/last.ckpt' cannot be written")
    assert "free some space and resume" in last
    assert kept == {name: (part / name).read_bytes() for name in kept}
    go_on(whole, part)


@pytest.mark.parametrize(
    "after", [0.0, pytest.param(0.02, marks=LATER), pytest.param(0.3, marks=LATER)]
)  # seconds: as the processes are forked, and later
def test_ctrl_c_while_photos_are_decoded_says_no_more_than_that(tmp_path: Path, after: float) -> None:
    """A terminal sends it to the processes that decode, too."""
    Image.effect_noise((700, 700), 50).convert("RGB").save(tmp_path / "photo.jpg")
    for number in range(800):  # seconds of decoding
        place = tmp_path / "photos" / ("rose" if number % 2 else "tulip") / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "photo.jpg", place)
    command = [
        sys.executable,
        "-m",
        "flowers_pl",
        "audit",
        "--data.root",
        "photos",
        "--model.weights",
        "null",
    ]
    process = subprocess.Popen(
        [*command, "--data.workers", "2", "--data.cache_dir", "cache"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not glob.glob("cache/*/thumbs-*", root_dir=tmp_path) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said == "flowers_pl: stopped by SIGINT\n"
    assert not list(tmp_path.glob("cache/*/*-*"))  # what no index names

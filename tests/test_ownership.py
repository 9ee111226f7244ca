"""Two processes never own one run; what a dead one left is taken over."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from flowers_pl import FlowersError
from flowers_pl.core.names import LAST, OWNER
from flowers_pl.runs import ownership
from flowers_pl.runs.ownership import RunFolder


def owner(**changes: object) -> str:
    """An owner.json of this process, but for some changes."""
    process = os.getpid()
    mine = {
        "host": socket.gethostname(),
        "process": process,
        "processes": ownership._process_space(),
        "started": ownership._started(process),
        "job": None,
    }
    return json.dumps(mine | changes)


def test_of_many_processes_that_start_one_run_at_once_one_owns_it(tmp_path: Path) -> None:
    barrier = Barrier(8)

    def enter(_: int) -> RunFolder | None:
        barrier.wait()
        try:
            return RunFolder.enter(tmp_path / "run", resume=False)
        except FlowersError:
            return None

    with ThreadPoolExecutor(8) as threads:
        owners = [found for found in threads.map(enter, range(8)) if found]
    assert len(owners) == 1
    owners[0].release()
    assert not (tmp_path / "run").exists()  # nothing was written there


def test_runs_without_a_name_that_start_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    found = [RunFolder.new(tmp_path, "20261125-100000") for _ in range(3)]
    assert [one.path.name for one in found] == ["20261125-100000", "20261125-100000-2", "20261125-100000-3"]
    for one in found:
        one.release()


def test_what_a_killed_process_left_is_taken_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    run = tmp_path / "run"
    run.mkdir()
    (run / OWNER).write_text(owner(process=dead.pid))
    with caplog.at_level(logging.WARNING):
        found = RunFolder.enter(run, resume=True)
    assert "takes over" in caplog.text
    assert json.loads((run / OWNER).read_text())["process"] == os.getpid()
    found.release()


def test_a_process_of_the_same_number_but_a_later_start_is_another(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / OWNER).write_text(owner(started="1"))
    RunFolder.enter(run, resume=False).release()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_an_owner_that_was_cut_short_and_is_silent_is_taken_over(tmp_path: Path, content: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / OWNER).write_text(content)
    with pytest.raises(FlowersError, match="under way"):  # it may be writing its name just now
        RunFolder.enter(run, resume=False)
    os.utime(run / OWNER, (1, 1))
    RunFolder.enter(run, resume=False).release()


def test_an_owner_on_another_machine_lives_while_it_touches_its_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / OWNER).write_text(owner(host="elsewhere"))
    with pytest.raises(FlowersError, match="on elsewhere"):
        RunFolder.enter(run, resume=True)
    old = (run / OWNER).stat().st_mtime - ownership.SILENCE - 1
    os.utime(run / OWNER, (old, old))
    RunFolder.enter(run, resume=True).release()


def test_a_requeued_job_enters_its_run_wherever_it_runs_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / OWNER).write_text(owner(host="elsewhere", job="42"))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    RunFolder.enter(run, resume=False, restart=True).release()


@pytest.mark.parametrize("killed", [True, False])
def test_a_restart_enters_the_run_of_its_own_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, killed: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    first = RunFolder.enter(tmp_path / "run", resume=False, restart=True)
    (first.path / LAST).touch()
    first.release()
    if killed:
        (first.path / OWNER).write_text(owner(started="1", job="42"))
    for job in ("43", None):
        monkeypatch.setenv("SLURM_JOB_ID", job) if job else monkeypatch.delenv("SLURM_JOB_ID")
        with pytest.raises(FlowersError, match="exists already"):
            RunFolder.enter(first.path, resume=False, restart=True)
    with pytest.raises(FlowersError, match="exists already"):
        RunFolder.enter(first.path, resume=False)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    RunFolder.enter(first.path, resume=False, restart=True).release()
    assert ("takes over" in caplog.text) == killed
    monkeypatch.delenv("SLURM_JOB_ID")
    RunFolder.enter(first.path, resume=True).release()  # by hand, at any time
    assert not (first.path / OWNER).exists()


def test_a_second_command_of_a_job_does_not_take_a_run_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    first = RunFolder.enter(tmp_path / "run", resume=False)
    for restart in (False, True):
        with pytest.raises(FlowersError, match="under way"):
            RunFolder.enter(first.path, resume=True, restart=restart)
    first.release()


def test_of_many_that_succeed_a_dead_owner_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have seen the dead owner before any of them takes its place."""
    run, barrier, lives = tmp_path / "run", Barrier(8), ownership._lives
    run.mkdir()
    (run / OWNER).write_text(owner(started="1"))

    def seen(file: Path, found: dict[str, object]) -> bool:
        alive = lives(file, found)
        barrier.wait()
        return alive

    monkeypatch.setattr(ownership, "_lives", seen)

    def enter(_: int) -> RunFolder | None:
        try:
            return RunFolder.enter(run, resume=True)
        except FlowersError:
            return None

    with ThreadPoolExecutor(8) as threads:
        (one,) = [found for found in threads.map(enter, range(8)) if found]
    assert json.loads((run / OWNER).read_text())["token"] == one._token
    one.release()
    assert not run.exists()


def test_processes_that_are_numbered_apart_are_told_by_their_last_touch(tmp_path: Path) -> None:
    """In a container the number of a process outside may be another's, or nobody's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / OWNER).write_text(owner(processes="pid:[1]", started="1"))
    with pytest.raises(FlowersError, match="under way"):
        RunFolder.enter(run, resume=True)
    os.utime(run / OWNER, (1, 1))
    RunFolder.enter(run, resume=True).release()


ASLEEP = """
import sys, time
from pathlib import Path
from flowers_pl.runs import ownership
ownership.HEARTBEAT = 0.1
ownership.RunFolder.enter(Path(sys.argv[1]), resume=False)
print("owns", flush=True)
time.sleep(60)
"""


def test_an_owner_that_was_taken_for_dead_ends(tmp_path: Path) -> None:
    """It was suspended, for example, and another machine resumed its run."""
    command = [sys.executable, "-c", ASLEEP, str(tmp_path / "run")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "owns\n"
    (tmp_path / "run" / OWNER).write_text(owner(token="another"))
    _, said = first.communicate(timeout=30)
    assert first.returncode == 1
    assert "another process took over this run" in said
    assert json.loads((tmp_path / "run" / OWNER).read_text())["token"] == "another"


def test_a_finished_run_is_entered_by_a_resume_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / LAST).touch()
    with pytest.raises(FlowersError, match="exists already"):
        RunFolder.enter(run, resume=False)
    RunFolder.enter(run, resume=True).release()
    assert (run / LAST).exists()

"""Who owns a run: two processes must never write to one folder.

The folder of a new run is made by one atomic step, and a file in it names the owner. Of those that want to
take the place of a dead owner, the one that makes another file goes on. So this holds on file systems without
locks. During a run its owner touches its file, which tells machines that share a disk that it lives.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replacing
from flowers_pl.core.names import BEST, LAST, OWNER
from flowers_pl.core.text import printable

log = logging.getLogger(__name__)
HEARTBEAT = 20.0  # seconds between two touches
SILENCE = 90.0  # seconds without one, after which an owner on another machine counts as dead


class RunFolder:
    """A run's folder, owned by this process until it is released.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / OWNER
        self._released = threading.Event()
        self._made_parent = not path.parent.exists()
        self._token = secrets.token_hex(8)

    @classmethod
    def new(cls, parent: Path, name: str) -> RunFolder:
        """Make a folder for a run that was given no name: `name`, or with a number where that exists."""
        for candidate in itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2))):
            folder = cls(parent / candidate)
            if folder._make():
                break
        folder._own()
        return folder

    @classmethod
    def enter(cls, path: Path, resume: bool, restart: bool = False) -> RunFolder:
        """Make the folder of a run, or enter it where it exists.

        Args:
            path: the folder.
            resume: whether this is a resume, which may find checkpoints there.
            restart: whether this is a job that was restarted or requeued, which may find those of its own.

        Raises:
            FlowersError: another process is running there, or it holds checkpoints of another run.
        """
        folder = cls(path)
        made = folder._make()
        last = None if made else _read(folder._file)
        expected = resume or (restart and (not last or last.get("job") == _job()))
        if not (made or expected) and any((path / name).exists() for name in (BEST, LAST)):
            raise FlowersError(
                f"--run_name: {str(path)!r} exists already; choose another name, or resume with --ckpt_path"
                f" {path / LAST}."
            )
        with nullcontext() if made else folder._succession(restart):
            folder._own()
        return folder

    def release(self) -> None:
        """Let others enter; remove the folder, and its parent if new, where nothing was written.

        A job leaves its name beside what it has saved, so that its restart is told from that of another.
        """
        self._released.set()
        if (_read(self._file) or {}).get("token") != self._token:
            return
        if (job := _job()) is not None and (self.path / LAST).exists():
            with replacing(self._file) as unfinished:
                unfinished.write_text(json.dumps({"job": job, "ended": True}), encoding="utf-8")
        else:
            self._file.unlink(missing_ok=True)
        for folder in (self.path, self.path.parent)[: 2 if self._made_parent else 1]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _make(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir()
        except FileExistsError:
            return False
        return True

    @contextmanager
    def _succession(self, restart: bool) -> Iterator[None]:
        """Remove the file of an owner that is dead, while no other process may.

        Raises:
            FlowersError: it lives, or another process was faster.
        """
        owner = _read(self._file)
        if owner is None:
            yield
            return
        ended = owner.get("ended") is True
        same_job = owner.get("job") is not None and owner.get("job") == _job()
        requeued = restart and same_job and owner.get("host") != socket.gethostname()
        if not (ended or requeued) and _lives(self._file, owner):
            raise _in_use(self.path, owner)
        claim = self._file.with_name(f".{OWNER}-claim")
        if claim.exists() and time.time() - claim.stat().st_mtime > SILENCE:
            claim.unlink(missing_ok=True)  # of a process that was killed just here
        try:
            claim.open("x").close()
        except FileExistsError:
            raise _in_use(self.path, owner) from None
        try:
            if _read(self._file) != owner:
                raise _in_use(self.path, _read(self._file) or owner)
            self._file.unlink()
            yield
        finally:
            claim.unlink(missing_ok=True)
        if not ended:
            log.warning(
                "%s: its last process (%s on %s) ended without a word; this one takes over.",
                printable(str(self.path)), owner.get("process"), owner.get("host"),
            )  # fmt: skip

    def _own(self) -> None:
        """Write who owns the folder.

        Raises:
            FlowersError: another process was faster.
        """
        me = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "processes": _process_space(),
            "started": _started(os.getpid()),
            "job": _job(),
            "token": self._token,
        }
        try:
            with open(self._file, "x", encoding="utf-8") as stream:
                json.dump(me, stream)
        except FileExistsError:
            raise _in_use(self.path, _read(self._file) or me) from None
        threading.Thread(target=self._beat, daemon=True, name="run-owner").start()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                owner = _read(self._file)
                if owner and owner.get("token") != self._token and not self._released.is_set():
                    log.error(
                        "%s: another process took over this run while this one was silent; this one ends.",
                        printable(str(self.path)),
                    )
                    os._exit(1)  # whatever it still saved would be in the way of the other's
                os.utime(self._file)
            except OSError:  # the folder is gone, or its disk for a while
                continue


def _job() -> str | None:
    """Return what is the same for a job and its restarts, by SLURM or torchrun."""
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")


def _in_use(path: Path, owner: dict[str, Any]) -> FlowersError:
    return FlowersError(
        f"--run_name: {str(path)!r} belongs to a run that is under way (process {owner.get('process')} on"
        f" {owner.get('host')}); choose another name, or wait for its end."
    )


def _read(file: Path) -> dict[str, Any] | None:
    """Return what an owner has written; None where there is no owner, {} where it was cut short."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives(file: Path, owner: dict[str, Any]) -> bool:
    """Whether an owner is still running: by its process where this one can see it, else by its last touch."""
    here = (owner.get("host"), owner.get("processes")) == (socket.gethostname(), _process_space())
    if here and isinstance(owner.get("process"), int):
        started = _started(owner["process"])
        return started is not None and started == owner.get("started")
    probe = file.with_name(f".{OWNER}-now-{os.getpid()}")
    try:
        probe.touch()  # the disk's own clock, which may differ from this machine's
        silent = probe.stat().st_mtime - file.stat().st_mtime
    except OSError:
        silent = time.time() - file.stat().st_mtime if file.exists() else float("inf")
    finally:
        probe.unlink(missing_ok=True)
    return silent < SILENCE


def _process_space() -> str | None:
    """Return what containers that number their processes apart differ in; None where there is no /proc."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(process: int) -> str | None:
    """Return what tells a process from a later one of the same number; None where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self").exists():
        return None
    try:  # a system without /proc
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""

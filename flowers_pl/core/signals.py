"""SIGTERM, Ctrl-C and SLURM's preemption: training ends at a moment from which it can be resumed exactly."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

STOPPING = (signal.SIGTERM, signal.SIGINT)
REQUEUE: int | None = getattr(
    signal, "SIGUSR1", None
)  # what SLURM sends ahead of a preemption; not on Windows
IMPATIENCE = 1.0  # seconds: a Ctrl-C so long after another one no longer waits
WATCHED = 1.0  # seconds between two looks at the launching process
GRACE = 3.0  # seconds to end by itself in, after the launching process has ended


class Stopped(SystemExit):
    """A signal ended the program; its exit code is the shell's for that: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name, self.advice = signal.Signals(number).name, ""

    def __str__(self) -> str:
        return f"stopped by {self.name}" + (f"; {self.advice}" if self.advice else "")


class StopSignals:
    """Within its `with` block, SIGTERM and SIGINT end the program by `Stopped`.

    At once, but for training: there a signal is noted only, and whoever trains asks for it where a checkpoint
    can be resumed from. A second Ctrl-C does not wait.

    Lightning (2.6) ends a run that gets SIGTERM with exit code 0 and an old checkpoint, saves at any moment
    when SLURM preempts it, and starts a broadcast from within the signal's handler.
    """

    def __init__(self) -> None:
        self._noted: dict[int, float] = {}
        self._waits = False
        self._requeue: Callable[[int, FrameType | None], Any] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in STOPPING}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = number == signal.SIGINT and now - self._noted.get(number, now) > IMPATIENCE
        if number in STOPPING and (again or not self._waits):
            raise Stopped(number)
        self._noted.setdefault(number, now)

    def wait(self) -> None:
        """Note signals from here on; takes the place of the handlers that Lightning has set up."""
        if not self._before:
            return
        self._waits = True
        for number in STOPPING:
            signal.signal(number, self._receive)
        if REQUEUE is not None and SLURMEnvironment.detect() and callable(signal.getsignal(REQUEUE)):
            self._requeue = signal.signal(REQUEUE, self._receive)  # type: ignore[assignment]

    def wait_no_more(self, trainer: L.Trainer) -> None:
        """Let signals end the program at once again, and one that was noted do so now."""
        self._waits = False
        self.obey(self.noted(trainer), trainer)

    def noted(self, trainer: L.Trainer) -> set[int]:
        """Which signals any rank has got: the same set on all ranks, which must all ask at the same time."""
        watched = [*STOPPING, *([REQUEUE] if REQUEUE is not None else [])]
        if trainer.world_size == 1:
            return set(self._noted)
        mine = torch.tensor([float(number in self._noted) for number in watched])
        flags = trainer.strategy.reduce(mine.to(trainer.strategy.root_device), reduce_op="max")
        return {number for number, flag in zip(watched, flags.tolist(), strict=True) if flag}

    def obey(self, noted: set[int], trainer: L.Trainer) -> None:
        """Do what the signals want, now that the state is saved: give the job back to SLURM, or stop.

        Raises:
            Stopped: for SIGTERM and SIGINT. A process that Lightning launched ends with code 0 then, for its
                launcher kills itself and all others when one ends otherwise.
        """
        if REQUEUE in noted and self._requeue is not None:
            self._noted.pop(REQUEUE, None)
            self._requeue(REQUEUE, None)
        for number in STOPPING:
            if number in noted:
                stopped = Stopped(number)
                if launched_by_lightning(trainer):
                    stopped.code = 0
                raise stopped


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals wait until processes have been forked: what a handler raises in Python's own hooks around a
    fork is ignored, and the signal lost."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals nowhere else
        yield
        return
    noted: list[int] = []
    before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in STOPPING}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, signal.SIG_DFL if handler is None else handler)
    for number in noted:
        signal.raise_signal(number)


def leave_signals_to_parent(worker: int = 0) -> None:
    """In a process that helps another: let that one tell of a Ctrl-C, which a terminal sends to both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def lost_contact(error: BaseException) -> bool:
    """Whether an error is that of a process that cannot reach another one of its run any more."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def launched_by_lightning(trainer: L.Trainer) -> bool:
    """Whether this process is one that another rank's process started."""
    launcher: Any = trainer.strategy.launcher
    environment = getattr(launcher, "cluster_environment", None)
    return environment is not None and not environment.creates_processes_externally and trainer.local_rank > 0


def end_with_launcher() -> None:
    """End this process when the one that launched it dies, which Lightning does not see to: with NCCL the
    others would wait for the dead one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED)
        time.sleep(GRACE)
        sys.stderr.write("flowers_pl: the process that launched this one has died, so it ends.\n")
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher-watch").start()


def end_rank(code: int) -> None:
    """End a process that is one of several, without taking Python down first; do nothing in any other.

    gloo's threads take Python's lock to let go of a tensor. One that comes to that late, because another
    process has its core, aborts a Python that is being taken down, and Lightning then kills all other ranks
    (pytorch/pytorch#190489: "terminate called without an active exception").
    """
    if dist.is_available() and dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

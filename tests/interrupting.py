"""Runs of the command line in processes of their own that get signals at chosen moments.

The moments of a run are counted: each time that Lightning calls the callbacks, and before, amid and after
each file that is put in its place. They are the same each time, so "killed at moment 57" can be repeated.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")  # real processes, without the seconds of import of each
FORKS.set_forkserver_preload(
    ["flowers_pl.cli.app", "flowers_pl.evaluation.figures", "torch.utils.tensorboard"]
)


@dataclass
class Circumstances:
    """Under which a process runs.

    Args:
        signals: by moment, the signal that the process then sends itself.
        noted: file for the names of the moments.
        environment: variables that are set.
        file_limit: bytes that a file may have at most, as on a disk that is full.
    """

    signals: Mapping[int, int] = field(default_factory=dict)
    noted: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    file_limit: int | None = None


class Moments:
    """Counts the moments of this process, names them, and sends the signals that are due."""

    def __init__(self, given: Circumstances) -> None:
        self.given, self.count = given, 0

    def passed(self, name: str) -> None:
        """One more moment."""
        if self.count in self.given.signals:
            os.kill(os.getpid(), self.given.signals[self.count])
        self.count += 1
        if self.given.noted is not None:
            with self.given.noted.open("a") as stream:
                stream.write(f"{name}\n")

    def watch(self) -> None:
        """Count from here on."""
        import torch
        from lightning.pytorch.trainer import call

        hooks, save, sync, replace = call._call_callback_hooks, torch.save, os.fsync, os.replace
        lightning, pytorch, system = (cast_away(module) for module in (call, torch, os))

        def called(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> None:
            self.passed(hook_name)
            hooks(trainer, hook_name, *args, **kwargs)

        def saved(checkpoint: Any, file: Any) -> None:
            whole = io.BytesIO()
            save(checkpoint, whole)
            half = whole.tell() // 2
            with open(file, "wb") as stream:
                stream.write(whole.getvalue()[:half])
                stream.flush()
                self.passed("half written")
                stream.write(whole.getvalue()[half:])

        def synced(handle: int) -> None:
            self.passed("before fsync")
            sync(handle)

        def replaced(source: Any, target: Any) -> None:
            self.passed(f"before rename to {Path(target).name}")
            replace(source, target)
            self.passed(f"after rename to {Path(target).name}")

        lightning._call_callback_hooks = called
        if self.given.file_limit is None:  # else torch.save meets the limit itself
            pytorch.save = saved
        system.fsync, system.replace = synced, replaced


def cast_away(module: Any) -> Any:
    """A module whose functions may be exchanged."""
    return module


def _main(args: list[str], home: Path, said: Path, given: Circumstances) -> None:
    """What happens in the process."""
    os.environ |= given.environment
    os.chdir(home)
    with said.open("a", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        import torch

        from flowers_pl.cli.app import main
        from flowers_pl.evaluation import growing_table

        growing_table.SAVE_EVERY = 0.0  # the same moments each time
        torch.set_num_threads(1)
        Moments(given).watch()
        if given.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_limit, given.file_limit))
        sys.exit(main(args))


def fit(
    args: list[str], home: Path, given: Circumstances | None = None, killed_after: float | None = None
) -> tuple[int, str]:
    """Run `fit` in a process of its own; see `run`."""
    return run(["fit", *args], home, given, killed_after)


def run(
    args: list[str], home: Path, given: Circumstances | None = None, killed_after: float | None = None
) -> tuple[int, str]:
    """Run a command in a process of its own.

    Args:
        args: the command line.
        home: working folder.
        given: the circumstances.
        killed_after: seconds after which it is killed from outside.

    Returns:
        The exit code, negative for a signal that ended it, and what was printed.
    """
    said = home / "said.txt"
    said.write_text("")
    process = FORKS.Process(target=_main, args=(args, home, said, given or Circumstances()))
    process.start()
    if killed_after is not None:
        time.sleep(killed_after)
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, said.read_text()

"""Runs of the command line in processes that kill themselves at a chosen moment.

The moments of a run are counted: each time that Lightning calls the callbacks, and before, amid and after
each file that is put in its place. They are the same each time, so "killed at moment 57" can be repeated.
"""

from __future__ import annotations

import builtins
import io
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")  # real processes, without the seconds of import of each
FORKS.set_forkserver_preload(["flowers_pl.cli", "flowers_pl.figures", "torch.utils.tensorboard"])


class Moments:
    """Counts the moments of this process, notes their names in a file, and kills the process at one of them.

    Args:
        killed_at: number of the moment; -1 for none.
        noted: file for the names.
    """

    def __init__(self, killed_at: int, noted: Path | None) -> None:
        self.killed_at, self.noted, self.count = killed_at, noted, 0

    def passed(self, name: str) -> None:
        """One more moment."""
        if self.count == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        if self.noted is not None:
            with builtins.open(self.noted, "a") as stream:
                stream.write(f"{name}\n")

    def watch(self) -> None:
        """Count from here on."""
        import torch
        from lightning.pytorch.trainer import call

        hooks, save, sync, replace = call._call_callback_hooks, torch.save, os.fsync, os.replace

        def called(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> None:
            self.passed(hook_name)
            hooks(trainer, hook_name, *args, **kwargs)

        def saved(checkpoint: Any, file: Any) -> None:
            whole = io.BytesIO()
            save(checkpoint, whole)
            half = whole.tell() // 2
            file.write(whole.getvalue()[:half])
            file.flush()
            self.passed("half written")
            file.write(whole.getvalue()[half:])

        def synced(handle: int) -> None:
            self.passed("before fsync")
            sync(handle)

        def replaced(source: Any, target: Any) -> None:
            self.passed(f"before rename to {Path(target).name}")
            replace(source, target)
            self.passed(f"after rename to {Path(target).name}")

        call._call_callback_hooks = called
        torch.save = saved
        os.fsync = synced
        os.replace = replaced


def _fit(args: list[str], home: Path, said: Path, killed_at: int, noted: Path | None) -> None:
    """What happens in the process."""
    import torch

    from flowers_pl.cli import main

    os.chdir(home)
    torch.set_num_threads(1)
    stream = open(said, "a", buffering=1)  # noqa: SIM115
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    Moments(killed_at, noted).watch()
    sys.exit(main(["fit", *args]))


def fit(
    args: list[str],
    home: Path,
    killed_at: int = -1,
    killed_after: float | None = None,
    noted: Path | None = None,
) -> tuple[int, str]:
    """Run `fit` in a process of its own.

    Args:
        args: of the command.
        home: working folder.
        killed_at: the moment at which the process kills itself; -1 for none.
        killed_after: seconds after which it is killed.
        noted: file for the names of the moments.

    Returns:
        The exit code, negative for a signal, and what was printed.
    """
    said = home / "said.txt"
    said.write_text("")
    process = FORKS.Process(target=_fit, args=(args, home, said, killed_at, noted))
    process.start()
    if killed_after is not None:
        time.sleep(killed_after)
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, said.read_text()

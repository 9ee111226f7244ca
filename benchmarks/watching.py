"""Runs a program and watches how much memory it takes."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.5  # seconds between looks


@dataclass(frozen=True)
class Watched:
    """What a program did.

    Args:
        seconds: from start to end.
        peak: bytes of memory at most, of all its processes, less what is backed by files; 0 where the system
            does not tell.
        output: what it printed.
    """

    seconds: float
    peak: int
    output: str


def run(command: Sequence[str], folder: Path) -> Watched:
    """Run a program to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    log = folder / "output.txt"
    start, peak = time.perf_counter(), 0
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, sum(anonymous(pid) for pid in family(process.pid)))
            try:
                process.wait(INTERVAL)
            except subprocess.TimeoutExpired:
                continue
    said = log.read_text()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said[-2000:]}")
    return Watched(time.perf_counter() - start, peak, said)


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children = [
        int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in _text(file).split()
    ]
    return [pid, *(one for child in children for one in family(child))]


def anonymous(pid: int) -> int:
    """Bytes of a process's memory that no file backs; a share of what it shares (Linux: smaps_rollup)."""
    rows = (line.split() for line in _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines())
    return sum(int(row[1]) * 1024 for row in rows if row[0] in ("Pss_Anon:", "Pss_Shmem:"))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # it has ended
        return ""


def machine() -> str:
    """The processor, as the system names it."""
    names = [
        line.partition(":")[2].strip()
        for line in _text(Path("/proc/cpuinfo")).splitlines()
        if "model name" in line
    ]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()

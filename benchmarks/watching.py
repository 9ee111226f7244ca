"""Run a program and measure its memory."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.5  # seconds between looks


@dataclass(frozen=True)
class Watched:
    """Hold the measurements of a finished program.

    Args:
        seconds: from start to end.
        peak: peak anonymous memory of all its processes in bytes; 0 where the system does not report it.
        output: what it printed.
    """

    seconds: float
    peak: int
    output: str


def run(command: Sequence[str], folder: Path) -> Watched:
    """Run a program and wait for its end.

    Raises:
        RuntimeError: it failed; the message ends with its last output.
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
    printed = log.read_text()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{printed[-2000:]}")
    return Watched(time.perf_counter() - start, peak, printed)


def family(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    children = [
        int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in _text(file).split()
    ]
    return [pid, *(descendant for child in children for descendant in family(child))]


def anonymous(pid: int) -> int:
    """Return a process's anonymous memory in bytes, with its share of shared memory (Linux: smaps_rollup)."""
    rows = (line.split() for line in _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines())
    return sum(int(row[1]) * 1024 for row in rows if row[0] in ("Pss_Anon:", "Pss_Shmem:"))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""


def stage_rates(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Return the median photos per second in each stage, from the rows of a run's metrics.csv."""
    return {
        f"stage_{stage}": statistics.median(
            float(row["images_per_second"]) for row in rows if float(row["stage"]) == stage
        )
        for stage in (1, 2)
    }


def machine() -> str:
    """Return the number of cores and the name of the processor."""
    names = [
        line.partition(":")[2].strip()
        for line in _text(Path("/proc/cpuinfo")).splitlines()
        if "model name" in line
    ]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()

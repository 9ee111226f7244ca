"""Measure `serve` from clients on the same machine, against `predict` in the same hour.

    python -m benchmarks.serving PHOTOS RUN [--seconds 20] [--long 60]    # RUN has best.ckpt

What a server bears is what 16 clients that never pause get; each figure is the median of three runs at a rate
that is fixed beforehand. Clients and server share the cores, as they do not on two machines.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.load import Check, Load, Seen, request
from benchmarks.predicting import predict, rate
from benchmarks.watching import anonymous, family, machine
from flowers_pl import best_precision
from flowers_pl.data.folder import list_pictures

CLIENTS = 16
SAMPLE = 256  # photos that are sent
RUNS = 3
TOLERANCE = 2e-3  # of a probability: bfloat16 has 8 bits


@contextmanager
def server(ckpt: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Yield the process id and the port of a server."""
    command = [sys.executable, "-m", "flowers_pl", "serve", "--port=0", f"--ckpt_path={ckpt}", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline().strip().strip("/").rpartition(":")[2])
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()


def expected(ckpt: Path, photos: Path, paths: list[str]) -> Check:
    """Return what says whether a result is `predict`'s."""
    with tempfile.TemporaryDirectory() as folder:
        root, table = Path(folder, "photos"), Path(folder, "predictions.csv")
        for number, path in enumerate(paths):
            link = root / f"{number}{Path(path).suffix}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(photos / path)
        command = [sys.executable, "-m", "flowers_pl", "predict", f"--ckpt_path={ckpt}", f"--out={table}"]
        subprocess.run([*command, f"--data.predict_root={root}"], check=True, capture_output=True)
        with table.open(newline="") as stream:
            rows = {Path(row["path"]).name: row for row in csv.DictReader(stream)}

    def check(result: dict[str, Any]) -> bool:
        row = rows[result["file"]]
        near = all(
            abs(share - float(row[name])) < TOLERANCE for name, share in result["probabilities"].items()
        )
        return near and result["label"] == row["label"]

    return check


def three(run: Any, *args: float) -> list[Seen]:
    """Run three times."""
    return [run(*args) for _ in range(RUNS)]


def spread(values: list[float], form: str = ",.0f") -> str:
    """Write a median and its range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def told(statuses: list[Seen]) -> str:
    """Write how many requests had which status."""
    total = sum((one.statuses for one in statuses), start=type(statuses[0].statuses)())
    return ", ".join(f"{count:,} x {status or 'lost'}" for status, count in sorted(total.items()))


def watch(pid: int, pause: float, until: threading.Event, found: list[tuple[float, int]]) -> None:
    """Note the memory of all processes after each pause, until told to end."""
    start = time.perf_counter()
    while not until.wait(pause):
        found.append((time.perf_counter() - start, sum(anonymous(one) for one in family(pid))))


def measure(photos: Path, ckpt: Path, seconds: float, long: float) -> None:
    """Measure, and print each figure as it is known.

    Args:
        photos: a folder.
        ckpt: the checkpoint.
        seconds: of each run.
        long: each of the two parts of the long run.
    """
    photos, every = list_pictures(str(photos), "PHOTOS")
    paths = every[:: max(1, len(every) // SAMPLE)][:SAMPLE]
    files = [
        (f"{number}{Path(path).suffix}", (photos / path).read_bytes()) for number, path in enumerate(paths)
    ]
    check = expected(ckpt, photos, paths)
    with server(ckpt) as (pid, port):
        loads = {
            size: Load(
                port,
                [request(files[at : at + size], port) for at in range(0, len(files) - size + 1, size)],
                check,
            )
            for size in (1, 8)
        }
        borne: dict[int, float] = {}
        for size, load in loads.items():
            load.from_clients(CLIENTS, seconds / 4)  # warm
            free = three(load.from_clients, CLIENTS, seconds)
            borne[size] = statistics.median(one.rate for one in free)
            print(
                f"{size} a request, {CLIENTS} clients: {spread([one.rate for one in free])} photos per second"
            )
            fixed = three(load.at_rate, 0.9 * borne[size] / size, seconds)
            print(f"  offered {0.9 * borne[size]:,.0f}: {spread([one.rate for one in fixed])}; {told(fixed)}")
            half = three(load.at_rate, 0.5 * borne[size] / size, seconds)
            ratio = spread([one.wait(0.99) / one.median for one in half], ".1f")
            print(
                f"  half of that: median {spread([1e3 * one.median for one in half], '.1f')} ms, p99"
                f" {spread([1e3 * one.wait(0.99) for one in half], '.1f')} ms, {ratio} times the median"
            )
            twice = three(load.at_rate, 2 * borne[size] / size, seconds)
            print(
                f"  twice that: {spread([one.rate for one in twice])} classified; {told(twice)}", flush=True
            )
        memory, end = list[tuple[float, int]](), threading.Event()
        watcher = threading.Thread(target=watch, args=(pid, long / 60, end, memory))
        watcher.start()
        found = loads[1].from_clients(CLIENTS, 2 * long)
        end.set()
        watcher.join()
        halves = [
            statistics.mean(size for at, size in memory if low < at <= low + long) for low in (0.0, long)
        ]
        print(
            f"{CLIENTS} clients for {2 * long:.0f} s: {sum(found.statuses.values()):,} requests"
            f" ({told([found])}), {found.wrong} wrong; memory {halves[0] / 2**20:,.0f} then"
            f" {halves[1] / 2**20:,.0f} MiB ({halves[1] / halves[0] - 1:+.1%})",
            flush=True,
        )


def main() -> None:
    """Measure `predict`, then `serve`, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=20, help="of each run")
    parser.add_argument("--long", type=float, default=60, help="of each part of the long run")
    parser.add_argument("--precision", default=None, help="of predict; default as the command line chooses")
    args = parser.parse_args()
    print(machine())
    steady = []
    for _ in range(RUNS):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            precision = args.precision or best_precision("cpu")
            steady.append(alone.submit(rate, predict, args.photos, args.run, precision).result())
    print(f"predict: {spread(steady)} photos per second", flush=True)
    measure(args.photos.resolve(), args.run.resolve() / "best.ckpt", args.seconds, args.long)


if __name__ == "__main__":
    main()

"""Measure the memory of `fit` and `predict` by the number of photos.

    python -m benchmarks.many_photos [--counts 3457 31000 310000] [--parts fit predict] [--size 160]

Makes small photos in a temporary folder (4 KB each on the disk, in TMPDIR) and deletes them at the end. `fit`
trains one epoch of stage 1 at 64 pixels. `predict`, at 160 pixels unless --size says otherwise, is killed
halfway, or after so many minutes, and resumed. Prints the peak memory of all processes together and, from one
count to the next, bytes a photo.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.watching import INTERVAL, anonymous, family, machine
from flowers_pl.core.files import read_json

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
SMALL = ["--model.weights", "null", "--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "0"]
SMALL += ["--export", "none", "--trainer.accelerator", "cpu"]


class Peak(NamedTuple):
    """The measurements of a command.

    Args:
        seconds: until it ended or was killed.
        anonymous: peak of all its processes' own memory, in bytes.
        resident: peak of their resident memory, which counts the pages of mapped files, in bytes.
    """

    seconds: float
    anonymous: int
    resident: int


def make_photos(root: Path, first: int, end: int) -> None:
    """Make the photos with the numbers from `first` to `end`: smooth colours, no two alike."""
    for number in range(first, end):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        file = root / CLASSES[number % len(CLASSES)] / f"{number:07d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BILINEAR).save(file, quality=80)


def watch(args: list[str], folder: Path, enough: Callable[[], bool] = lambda: False) -> Peak:
    """Run a command of the program, kill it once there is enough, and return its peak memory.

    Raises:
        RuntimeError: it failed; the message ends with its last output.
    """
    start, own, resident = time.perf_counter(), 0, 0
    with open(folder / "output.txt", "w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowers_pl", *args], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            processes = family(process.pid)
            own = max(own, sum(map(anonymous, processes)))
            resident = max(resident, sum(map(resident_memory, processes)))
            if enough():
                process.kill()
                process.wait()
                return Peak(time.perf_counter() - start, own, resident)
            time.sleep(INTERVAL)
        output.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(args)} failed:\n{output.read()[-2000:]}")
    return Peak(time.perf_counter() - start, own, resident)


def resident_memory(pid: int) -> int:
    """Return a process's resident memory in bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    rows = (line.split() for line in status.splitlines())
    return sum(int(row[1]) * 1024 for row in rows if row[0] == "VmRSS:")


def measure_fit(photos: Path, folder: Path) -> dict[str, Peak]:
    """Train the head for one epoch at 64 pixels, with a cache that is new and then with the same one."""
    args = ["fit", "--data.root", str(photos), "--data.image_size", "64", *SMALL]
    args += ["--data.cache_dir", str(folder / "cache")]
    return {f"fit, {cache}": watch(args, folder) for cache in ("new cache", "old cache")}


def measure_predict(photos: Path, folder: Path, num_photos: int, minutes: float) -> dict[str, Peak]:
    """Predict until half of the photos are done, or for some minutes; then resume."""
    args = ["predict", "--ckpt_path", str(folder / "checkpoints" / "small" / "best.ckpt")]
    args += ["--data.predict_root", str(photos), "--out", "x.csv", "--trainer.accelerator", "cpu"]
    note, end = folder / ".x.csv.partial.json", time.monotonic() + 60 * minutes

    def half() -> bool:
        done = read_json(note)["done"][0] if note.exists() else 0
        return done > 0 and (done >= num_photos / 2 or time.monotonic() > end)

    peaks = {"predict, killed": watch(args, folder, half)}
    done = read_json(note)["done"][0] if note.exists() else num_photos  # it was too fast
    if done < num_photos:
        peaks[f"predict, resumed after {done:,}"] = watch([*args, "--resume"], folder)
    with open(folder / "x.csv", encoding="utf-8") as table:
        assert sum(1 for _ in table) == num_photos + 1
    return peaks


def main() -> None:
    """Measure each count and print peaks and differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[3457, 31000])
    parser.add_argument("--parts", nargs="+", choices=["fit", "predict"], default=["fit", "predict"])
    parser.add_argument("--size", type=int, default=160, help="of what is predicted, in pixels a side")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which predict is killed")
    args = parser.parse_args()
    print(machine(), flush=True)
    before: dict[str, tuple[int, Peak]] = {}
    with tempfile.TemporaryDirectory(prefix="many-photos-") as temporary:
        folder = Path(temporary)
        photos = folder / "photos"
        if "predict" in args.parts:
            drawn = ["--data.root", str(folder / "drawn"), "--data.drawn", "10", "--run_name", "small"]
            drawn += ["--data.image_size", str(args.size), "--data.cache_dir", str(folder / "cache")]
            watch(["fit", *drawn, *SMALL], folder)
        for made, count in zip([0, *sorted(args.counts)], sorted(args.counts), strict=False):
            make_photos(photos, made, count)
            peaks = measure_fit(photos, folder) if "fit" in args.parts else {}
            if "predict" in args.parts:
                peaks |= measure_predict(photos, folder, count, args.minutes)
            for name, peak in peaks.items():
                kind = name.partition(" after")[0]
                own, resident = peak.anonymous / 2**20, peak.resident / 2**20
                line = f"{count:,} photos, {name}: {peak.seconds:.0f} s, {own:,.0f} MiB of its own,"
                line += f" {resident:,.0f} MiB resident"
                if kind in before:
                    fewer, smaller = before[kind]
                    each = (peak.anonymous - smaller.anonymous) / (count - fewer)
                    line += f"; {each:,.0f} bytes of its own a photo more"
                print(line, flush=True)
                before[kind] = count, peak


if __name__ == "__main__":
    main()

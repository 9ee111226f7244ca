"""Measure the cache of decoded photos: one new photo among many, the gathers of batches, and a large index.

    FLOWERS_PHOTOS=PHOTOS python -m benchmarks.growing_cache [--copies 9] [--folder DIR]

Makes strongly altered crops of the photos below PHOTOS in a temporary folder (about 10 KB each, and 77 KB
more in the cache at 160 pixels), and removes them at the end. Each start is a process of its own, timed
without its imports, from before the photos are listed to the first training batch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.watching import machine
from flowers_pl.data import cache, cache_index, decode_workers
from flowers_pl.data.cache import decode_photos
from flowers_pl.data.cache_index import Index
from flowers_pl.data.cache_shards import MappedPixels
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.duplicates import duplicate_groups
from flowers_pl.data.folder import list_photos

SIDE = 200  # pixels of a crop
SIZE = 160  # pixels in the cache


def alter(file: Path, folder: Path, copies: int) -> None:
    """Write crops of a photo: a quarter to half of its area, mirrored or not, in other colours."""
    with Image.open(file) as opened:
        photo = opened.convert("RGB")
    for copy in range(copies):
        draw = np.random.default_rng([copy, *file.name.encode()])
        width, height = (round(side * draw.uniform(0.5, 0.7)) for side in photo.size)
        left, top = (
            int(draw.integers(0, whole - part + 1))
            for whole, part in zip(photo.size, (width, height), strict=True)
        )
        crop = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
        if draw.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crop = crop.rotate(draw.uniform(-20, 20), Image.Resampling.BILINEAR)
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            crop = change(crop).enhance(draw.uniform(0.6, 1.5))
        crop.save(folder / f"{file.stem}-{copy}.jpg", quality=80)


def make_photos(source: Path, root: Path, copies: int) -> int:
    """Write the altered crops of all photos of a folder of class folders; return their number."""
    with ProcessPoolExecutor() as pool:
        for label in sorted(path.name for path in source.iterdir() if path.is_dir()):
            (root / label).mkdir(parents=True)
            files = sorted((source / label).iterdir())
            list(pool.map(partial(alter, folder=root / label, copies=copies), files, chunksize=16))
    return sum(1 for _ in root.glob("*/*"))


def start(root: Path, cache_dir: Path) -> None:
    """Load what `fit` loads before its first batch; print seconds, photos decoded and the peak of memory."""
    decoded, decode_rows = Counter[str](), decode_workers.decode_rows

    def count(*args: object) -> object:
        for found in decode_rows(*args):  # type: ignore[arg-type]
            decoded["photos"] += 1
            yield found

    for module in (cache, sys.modules.get("flowers_pl.data.cache_update")):  # 0.1.0 has the first one only
        if hasattr(module, "decode_rows"):
            module.decode_rows = count  # type: ignore[union-attr]
    begin, busy = time.perf_counter(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = FlowersDataModule(str(root), image_size=SIZE, cache_dir=str(cache_dir))
    data.prepare_data()
    prepared = time.perf_counter()
    data.setup("fit")
    split = time.perf_counter()
    next(iter(data.train_dataloader()))
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = {"prepare_data": prepared - begin, "setup": split - prepared, "batch": end - split}
    seconds |= {"all": end - begin, "of a core": time.process_time() - busy}
    print(json.dumps(seconds | {"decoded": decoded["photos"], "MB": (peak - before) / 1e3}))


def measure_start(root: Path, cache_dir: Path) -> dict[str, float]:
    """Run `start` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.growing_cache",
        "--start",
        str(root),
        "--folder",
        str(cache_dir),
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def compare_starts(root: Path, cache_dir: Path, source: Path, rounds: int) -> None:
    """Start with nothing new and with one new photo in turn, then with other changes."""
    print("all photos new:", measure_start(root, cache_dir))
    label = next(root.iterdir())
    names = iter(sorted((source / label.name).iterdir()))
    none, one = [], []
    for _ in range(rounds):
        none.append(measure_start(root, cache_dir))
        shutil.copy(next(names), label)
        one.append(measure_start(root, cache_dir))
    for what, found in (("nothing new", none), ("one new photo", one)):
        wall, core = (statistics.median(each[time] for each in found) for time in ("all", "of a core"))
        print(f"{what}: {wall:.2f} s, {core:.2f} s of a core;", *found, sep="\n    ")
    for file in list(label.iterdir())[:100]:
        file.unlink()
    print("100 photos gone:", measure_start(root, cache_dir))
    for file in label.iterdir():
        os.utime(file)
    print("one class touched:", measure_start(root, cache_dir))


def compare_gathers(root: Path, cache_dir: Path, num_photos: int = 16_384, rounds: int = 5) -> None:
    """Time random gathers from the shards beside those from one array, as in 0.1.0, of the same pixels."""
    found = decode_photos(root, list_photos(root), SIZE, cache_dir)
    rows = np.sort(found.rows)
    file = cache_dir / "one-array.npy"
    one = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=found.pixels.shape)
    for begin in range(0, len(rows), 256):
        one[rows[begin : begin + 256]] = found.pixels[rows[begin : begin + 256]]
    one = np.load(file, mmap_mode="r")
    draw = np.random.default_rng(0)
    for size in (8, 32, 64):
        times: dict[str, list[float]] = {"shards": [], "one array": []}
        for turn in range(rounds + 1):
            batches = draw.choice(rows, (num_photos // size, size))
            for name, pixels in (("shards", found.pixels), ("one array", one)):
                begin_at = time.process_time()
                for batch in batches:
                    np.asarray(pixels[batch])
                if turn:  # the first one fills the page cache
                    times[name].append((time.process_time() - begin_at) / num_photos * 1e6)
        shards, array = (statistics.median(times[name]) for name in times)
        print(
            f"{size} photos a gather: {shards:.1f} us of a core a photo from shards,"
            f" {array:.1f} from one array, ratio {shards / array:.2f}"
        )
    assert isinstance(found.pixels, MappedPixels)
    file.unlink()


def measure_index(num_photos: int, folder: Path) -> None:
    """Time the index of many photos, which need not exist."""
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 256, (num_photos, cache_index.DIGEST), np.uint8)
    shards = [f"{number:08x}" for number in range(-(-num_photos // cache_index.SHARD))]
    index = Index(
        keys, np.arange(num_photos), [], keys, keys, keys[:, :8].copy().view(np.uint64)[:, 0], shards
    )
    begin = time.perf_counter()
    index.write(folder, b"settings")
    written = time.perf_counter()
    read = Index.read(folder, b"settings")
    loaded = time.perf_counter()
    assert read is not None
    assert np.array_equal(read.find(keys), read.rows)
    found = time.perf_counter()
    size = (folder / cache_index.INDEX).stat().st_size
    print(
        f"index of {num_photos} photos: {size / num_photos:.0f} bytes a photo,"
        f" written in {written - begin:.2f} s, read in {loaded - written:.2f} s,"
        f" all keys found in {found - loaded:.2f} s"
    )


def main() -> None:
    """Make the photos, measure, and remove them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=9, help="crops of each photo")
    parser.add_argument(
        "--rounds", type=int, default=3, help="starts with nothing new and with one new photo"
    )
    parser.add_argument("--folder", type=Path, help="for the photos and the cache; default a temporary one")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start(args.start, args.folder)
        return
    source = Path(os.environ["FLOWERS_PHOTOS"])
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        root, cache_dir = Path(scratch, "photos"), Path(scratch, "cache")
        print("photos:", make_photos(source, root, args.copies))
        compare_starts(root, cache_dir, source, args.rounds)
        found = decode_photos(root, list_photos(root), SIZE, cache_dir)
        groups = Counter(duplicate_groups(found.digests, found.phashes, found.thumbs).tolist())
        several = [count for count in groups.values() if count > 1]
        print(f"groups of duplicates: {len(several)}, of {sum(several)} photos")
        del found
        compare_gathers(root, cache_dir)
        measure_index(310_000, Path(scratch))


if __name__ == "__main__":
    main()

"""Time the search for near-duplicates among made-up fingerprints, beside comparing all pairs.

    python -m benchmarks.near_duplicates [--photos 1000000] [--all-pairs 20000]

The set has hashes and thumbnails drawn evenly; 5 % of them are copies 0 to 6 bits apart, 1 % have one hash
(half with thumbnails that correlate, half not), and 5 % share 16 bits.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.watching import machine
from flowers_pl.data.duplicates import THUMB, duplicate_groups
from flowers_pl.data.hash_search import NEAR_BITS
from flowers_pl.data.near_duplicates import NEAR_CORRELATION, connected

ADDED = 1000


def fingerprints(count: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Make the digests, hashes and thumbnails of a set."""
    rng = np.random.default_rng(0)
    phashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    thumbs = rng.integers(0, 256, (count, THUMB, THUMB), dtype=np.uint8)
    copies, crowd, sharing = count // 20, count // 100, count // 20
    phashes[:copies] = phashes[copies : 2 * copies]
    for number in range(NEAR_BITS):
        bits = np.uint64(1) << rng.integers(0, 64, copies, dtype=np.uint64)
        phashes[:copies] ^= np.where(rng.integers(0, NEAR_BITS + 1, copies) > number, bits, np.uint64(0))
    thumbs[:copies] = thumbs[copies : 2 * copies] // 2 + rng.integers(0, 9, (copies, 1, 1), dtype=np.uint8)
    phashes[-crowd:] = phashes[-1]
    thumbs[-crowd // 2 :] = thumbs[-1] // 2 + rng.integers(
        0, 9, (-(-crowd // 2), THUMB, THUMB), dtype=np.uint8
    )
    phashes[-crowd - sharing : -crowd] >>= np.uint64(16)
    return [str(photo) for photo in range(count)], phashes, thumbs


def all_pairs(phashes: np.ndarray, thumbs: np.ndarray, rows: int = 256) -> np.ndarray:
    """Group near photos by comparing all pairs."""
    pairs = []
    for start in range(0, len(phashes), rows):
        apart = np.bitwise_count(phashes[start : start + rows, None] ^ phashes[None, start:])
        for row, column in np.argwhere(apart <= NEAR_BITS):
            first, second = start + int(row), start + int(column)
            both = thumbs[first].ravel(), thumbs[second].ravel()
            if first < second and np.corrcoef(*both)[0, 1] >= NEAR_CORRELATION:
                pairs.append((first, second))
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return connected(len(phashes), first, second)


def report(name: str, call: Callable[[], np.ndarray]) -> np.ndarray:
    """Print how long a call takes, and what memory the process has taken at most."""
    start, busy = time.perf_counter(), time.process_time()
    groups = call()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    sizes = f"{len(np.unique(groups)):,} groups of {len(groups):,}"
    print(
        f"{name}: {seconds:.1f} s ({busy:.1f} s of processor time), {sizes}, peak {peak:.2f} GiB", flush=True
    )
    return groups


def search(count: int) -> None:
    """Search a set for the first time, again, and with new photos; keep the groups in a temporary folder."""
    digests, phashes, thumbs = fingerprints(count)
    report("the set is made", lambda: np.arange(count))
    with tempfile.TemporaryDirectory() as folder:

        def some(least: int, most: int) -> np.ndarray:
            part = slice(least, most)
            return duplicate_groups(digests[part], phashes[part], thumbs[part], Path(folder))

        report("first", lambda: some(0, count - ADDED))
        report("again", lambda: some(0, count - ADDED))
        added = report(f"{ADDED:,} new", lambda: some(0, count))
        report(f"{ADDED:,} fewer", lambda: some(ADDED, count))
    assert np.array_equal(added, duplicate_groups(digests, phashes, thumbs))
    copies = np.arange(count // 20)
    assert np.array_equal(added[copies], added[copies + len(copies)])


def compare(count: int) -> None:
    """Search a set by sorting and by comparing all pairs."""
    digests, phashes, thumbs = fingerprints(count)
    found = report("by sorting", lambda: duplicate_groups(digests, phashes, thumbs))
    expected = report("all pairs", lambda: all_pairs(phashes, thumbs))
    both = np.unique(np.stack([found, expected]), axis=1).shape[1]
    assert both == len(np.unique(found)) == len(np.unique(expected))


def main() -> None:
    """Measure both, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument(
        "--all-pairs", type=int, default=20_000, help="photos of which all pairs are compared"
    )
    given = parser.parse_args()
    print(machine())
    for measure, count in ((compare, given.all_pairs), (search, given.photos)):
        process = get_context("spawn").Process(target=measure, args=(count,))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()

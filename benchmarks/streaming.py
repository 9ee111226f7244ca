"""Measure stage 1 on photos streamed from a store beside stage 1 on the cache: photos per second, ratios.

    python -m benchmarks.streaming PHOTOS --weights FILE [--rounds 3]

The store is moto's server, which runs on the same cores and takes its share of them. One epoch of each
kind in turn, in one process, as often as there are rounds: the cache's memory map; a pack in a folder; a
pack in the store that fits the machine, from its second epoch on; and one of which the machine may keep
half, so that each epoch fetches all of it again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.throughput import _frozen, _step, pipeline
from benchmarks.watching import machine
from flowers_pl import FlowerClassifier, FlowersDataModule, ThreadPlan, best_precision, load_weights
from flowers_pl.data.packing import pack_folder
from flowers_pl.packs.roots import find_pack

PORT = 5055
SHARD_BYTES = 8_000_000
STORE = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
}  # fmt: skip


def start_store(pack: Path) -> subprocess.Popen[bytes]:
    """Start the server and copy a pack to s3://photos/pack."""
    import s3fs

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(PORT)], **quiet)  # type: ignore[call-overload]
    os.environ.update(STORE)
    store = s3fs.S3FileSystem()
    for _ in range(100):
        try:
            store.mkdir("photos")
            break
        except Exception:  # it is not listening yet
            time.sleep(0.5)
    for file in pack.iterdir():
        store.pipe_file(f"photos/pack/{file.name}", file.read_bytes())
    return server  # type: ignore[no-any-return]


def cpu_seconds(pid: int) -> float:
    """Return the processor time that another process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dtype = torch.bfloat16 if best_precision("cpu") == "bf16-mixed" else torch.float32
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = time.perf_counter()
        made = pack_folder(Path(args.photos), folder / "pack", [160], shard_bytes=SHARD_BYTES)
        seconds = time.perf_counter() - start
        print(f"{machine()}; torch {torch.__version__}; {dtype}; {threads} threads")
        print(f"packed {made.num_photos / seconds:.0f} photos a second: {made.num_bytes / 1e6:.0f} MB,"
              f" {made.num_bytes / made.num_photos:.0f} bytes a photo, {made.num_shards} shards")  # fmt: skip
        server = start_store(folder / "pack")
        try:
            half = made.num_bytes / 2e9
            roots = {
                "cache": (args.photos, 1e3), "pack in a folder": (str(folder / "pack"), 1e3),
                "store, all kept": ("s3://photos/pack", 1e3), "store, half kept": ("s3://photos/pack", half),
            }  # fmt: skip
            measure(roots, folder, args.weights, dtype, threads, args.rounds, server.pid)
        finally:
            server.kill()


def measure(
    roots: dict[str, tuple[str, float]], folder: Path, weights: str, dtype: torch.dtype, threads: int,
    rounds: int, server: int,
) -> None:  # fmt: skip
    """Run one epoch of each kind in turn, and print the medians."""
    modules = {}
    for name, (root, limit) in roots.items():
        data = FlowersDataModule(root, cache_dir=str(folder / name), shard_cache_limit=limit)
        data.prepare_data()
        data.setup("fit")
        modules[name] = data
    model = FlowerClassifier(weights=None)
    model.build(modules["cache"].classes, 160)
    load_weights(model.network.backbone, weights)
    frozen = _frozen(model.network, dtype, 160, 1)
    share = ThreadPlan(threads, 1, frozen.chunk)
    epoch = partial(pipeline, frozen=frozen, step=_step(model.network, frozen, 1e-3, 1), share=share)
    epoch(modules["store, all kept"])  # the first one fetches
    rates: dict[str, list[float]] = {name: [] for name in modules}
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(rounds):
        for name, data in modules.items():
            pack = find_pack(data.root)
            cache = None if pack is None else pack.cache
            fetched, own, other = cache.fetched if cache else 0, time.process_time(), cpu_seconds(server)
            rates[name].append(epoch(data))
            fetched = (cache.fetched if cache else 0) - fetched
            own, other = time.process_time() - own, cpu_seconds(server) - other
            times[name].append(own / len(data.train_photos))
            print(
                f"  {name}: {rates[name][-1]:.0f} photos a second, {fetched / 1e6:.0f} MB fetched;"
                f" processor time: {own:.1f} s, the server's {other:.1f} s",
                flush=True,
            )
    print("| photos from | photos a second | of the cache's | processor time a photo | of the cache's |")
    for name in modules:
        rate, ms = statistics.median(rates[name]), 1e3 * statistics.median(times[name])
        first, last = statistics.median(rates["cache"]), 1e3 * statistics.median(times["cache"])
        print(f"| {name} | {rate:.0f} | {rate / first:.2f} | {ms:.2f} ms | {ms / last:.2f} |")


if __name__ == "__main__":
    main()

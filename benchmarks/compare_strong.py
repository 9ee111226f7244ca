"""Compare the strong recipe with plain torch in pairs, which take turns at running first.

    python -m benchmarks.compare_strong PHOTOS --weights FILE [--head_epochs 6] [--epochs 25] [--pairs 3]

Both decode the photos anew each time and train as many epochs; neither exports. Prints each pair, then the
medians: photos per second in each stage, seconds from start to end, and ratios.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.watching import machine, run, stage_rates

HERE = Path(__file__).parent


def plain(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Time the plain script."""
    watched = run(
        [
            sys.executable, str(HERE / "plain_strong.py"), str(args.photos.resolve()),
            f"--weights={args.weights}", f"--head_epochs={args.head_epochs}", f"--epochs={args.epochs}",
            f"--threads={args.threads}", f"--dtype={args.dtype}",
        ],
        folder,
    )  # fmt: skip
    found = json.loads(watched.output.splitlines()[-1])
    return found | {"seconds": watched.seconds}


def ours(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Time `fit` with the strong recipe."""
    watched = run(
        [
            sys.executable, "-m", "flowers_pl", "fit", f"--config={HERE.parent / 'configs/strong.yaml'}",
            f"--data.root={args.photos.resolve()}", f"--data.cache_dir={folder}",
            f"--model.weights={args.weights}", "--run_name=run", "--export=none",
            "--gradcam.every_n_epochs=0", f"--trainer.precision={args.precision}",
            f"--unfreeze.head_epochs={args.head_epochs}", f"--unfreeze.top_epochs={args.epochs}",
        ],
        folder,
    )  # fmt: skip
    with open(folder / "checkpoints/run/metrics.csv") as table:
        rows = list(csv.DictReader(table))
    accuracy = float(rows[-1]["val_accuracy"])
    return stage_rates(rows) | {"seconds": watched.seconds, "val_accuracy": accuracy}


def main() -> None:
    """Time the pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", required=True, help="ImageNet weights, a state_dict of torchvision's")
    parser.add_argument("--head_epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=25, help="of stage 2")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the plain script; try which are best")
    parser.add_argument("--dtype", default="float32", help="of the plain script: float32 or bfloat16")
    parser.add_argument("--precision", default="32", help="of fit")
    args = parser.parse_args()
    args.weights = str(Path(args.weights).resolve())
    print(machine(), flush=True)
    both: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for pair in range(args.pairs):
        for name, time in (("plain", plain), ("ours", ours))[:: 1 if pair % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                both[name].append(time(args, Path(folder)))
            print(pair, name, json.dumps(both[name][-1]), flush=True)
    for part in ("stage_1", "stage_2", "seconds"):
        medians = {name: statistics.median(row[part] for row in rows) for name, rows in both.items()}
        pairs = [mine[part] / its[part] for mine, its in zip(both["ours"], both["plain"], strict=True)]
        ratio = statistics.median(1 / pair if part == "seconds" else pair for pair in pairs)
        print(f"{part}: plain {medians['plain']:.1f}, ours {medians['ours']:.1f}: {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()

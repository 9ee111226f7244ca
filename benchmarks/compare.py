"""Compare this project with the Keras notebook and a plain torch script: same photos, machine and epochs.

    python -m benchmarks.compare PHOTOS --weights FILE --keras KERAS_ENV/bin/python [--skip 32 plain]

Early stopping is off everywhere. Prints photos per second in each stage, seconds from start to end, and
ratios.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.watching import machine, run, stage_rates

HERE = Path(__file__).parent
NAMES = {
    "auto": "flowers_pl, precision auto",
    "32": "flowers_pl, precision 32",
    "plain": "plain torch",
    "keras": "Keras",
}


def ours(args: argparse.Namespace, folder: Path, *options: str) -> dict[str, float]:
    """Time `fit` from start to end: imports, decoding, training, evaluation; the others have no export."""
    watched = run(
        [
            sys.executable, "-m", "flowers_pl", "fit", f"--data.root={args.photos}",
            f"--data.cache_dir={folder}",
            f"--model.weights={args.weights}", "--run_name=run", "--export=none",
            "--early_stopping.patience=1000",
            f"--unfreeze.head_epochs={args.epochs}", f"--unfreeze.top_epochs={args.epochs}",
            "--trainer.enable_progress_bar=false", *options,
        ],
        folder,
    )  # fmt: skip
    with open(folder / "checkpoints/run/metrics.csv") as table:
        rows = list(csv.DictReader(table))
    best = min(rows, key=lambda row: float(row["val_loss"]))
    return stage_rates(rows) | {
        "seconds": watched.seconds,
        "peak_gib": watched.peak / 2**30,
        "val_accuracy": float(best["val_accuracy"]),
    }


def script(python: str, name: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Time one of the scripts beside this file, imports included."""
    watched = run([python, str(HERE / name), str(args.photos), f"--epochs={args.epochs}"], folder)
    found = json.loads(watched.output.strip().splitlines()[-1])
    return {**found, "seconds": watched.seconds, "peak_gib": watched.peak / 2**30}


def main() -> None:
    """Run all of them in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument(
        "--weights", required=True, help="a state_dict of torchvision's mobilenet_v2, or its name"
    )
    parser.add_argument("--keras", help="python of an environment with tensorflow-cpu, scipy and pillow")
    parser.add_argument("--epochs", type=int, default=10, help="of each stage")
    parser.add_argument("--skip", nargs="*", default=[], choices=["auto", "32", "plain", "keras"])
    args = parser.parse_args()
    args.photos = args.photos.resolve()
    args.weights = str(Path(args.weights).resolve()) if Path(args.weights).exists() else args.weights
    every: dict[str, Callable[[Path], dict[str, float]]] = {
        "auto": lambda folder: ours(args, folder),
        "32": lambda folder: ours(args, folder, "--trainer.precision=32"),
        "plain": lambda folder: script(sys.executable, "plain_torch.py", args, folder),
        "keras": lambda folder: script(args.keras, "keras_pipeline.py", args, folder),
    }
    runs = {
        NAMES[key]: run
        for key, run in every.items()
        if key not in args.skip and (args.keras or key != "keras")
    }
    print(f"{machine()}; torch {torch.__version__}; {args.epochs} epochs per stage", flush=True)
    found: dict[str, dict[str, float]] = {}
    for name, start in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = start(Path(folder))
        figures = ", ".join(f"{key} {value:.4g}" for key, value in found[name].items())
        print(f"{name}: {figures}", flush=True)
    slowest = found[list(found)[-1]]
    for name, figures in list(found.items())[:-1]:
        rates = ", ".join(
            f"stage {stage} {figures[f'stage_{stage}'] / slowest[f'stage_{stage}']:.2f}" for stage in (1, 2)
        )
        whole = slowest["seconds"] / figures["seconds"]
        print(f"{name} against {list(found)[-1]}: {rates}, whole {whole:.2f} times")


if __name__ == "__main__":
    main()

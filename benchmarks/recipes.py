"""Measure recipes over several splits, one row a run, and go on where an earlier call ended.

    python -m benchmarks.recipes PHOTOS --weights FILE --runs DIR [--only strong teacher] [--jobs 1]
    python -m benchmarks.recipes --summary [--runs DIR]

A run is (recipe, split, seed). Finished ones are rows of `recipes.csv` beside this file and are passed over.
Runs are made in the order of `PLAN`; a recipe with a teacher waits for the teacher's table of its split.
`--summary` prints each recipe's mean over its splits and its difference from `strong` in pairs, and, where
the folders of the runs are given, the calibration error of the strong recipe's pooled predictions.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.watching import machine
from flowers_pl import FlowerClassifier
from flowers_pl.evaluation.calibration import equal_mass_error
from flowers_pl.network.answers import Temperature

HERE = Path(__file__).parent
TABLE = HERE / "recipes.csv"
COLUMNS = ("recipe", "split", "seed", "accuracy", "loss", "ece", "minutes", "device", "torch", "commit")
CROP_OFF = (
    "--data.augmentation.crop=1", "--data.stored_size=null", "--data.augmentation.rotation=25",
    "--data.augmentation.shift=0.1", "--data.augmentation.zoom=0.15",
)  # fmt: skip
RECIPES: dict[str, tuple[str, ...]] = {
    "strong": (),
    "with a teacher": (),
    "with a teacher, flip": ("--model.flip_test=true",),
    "flip": ("--model.flip_test=true",),
    "30 layers": ("--unfreeze.layers=30",),
    "all layers": ("--unfreeze.layers=all",),
    "no crop, the original's shifts": CROP_OFF,
    "crop from 160 pixels": ("--data.stored_size=null",),
    "no weak epochs": ("--data.augmentation.weak_epochs=0",),
    "no contrast and saturation": ("--data.augmentation.contrast=0", "--data.augmentation.saturation=0"),
    "constant rates": ("--model.schedule=constant", "--model.warmup=0"),
    "one rate": ("--model.layer_decay=1", "--model.top_head_lr=null"),
    "no weight decay": ("--model.weight_decay=0",),
    "no label smoothing": ("--model.label_smoothing=0",),
    "no average": ("--average.decay=0",),
    "no clipping": ("--trainer.gradient_clip_val=null",),
    "12 epochs": ("--unfreeze.top_epochs=12",),
    "40 epochs": ("--unfreeze.top_epochs=40",),
}
TEACHERS = ("with a teacher", "with a teacher, flip")
ALSO = [name for name in RECIPES if name not in ("strong", "flip", *TEACHERS)]
SPLITS = range(4)


class Run(NamedTuple):
    """What is measured."""

    recipe: str
    split: int
    seed: int


PLAN = [
    *(Run("teacher", split, 0) for split in SPLITS),
    *(Run("strong", split, seed) for seed in (0, 1) for split in SPLITS),
    *(Run("with a teacher", split, 0) for split in SPLITS),
    *(Run(recipe, split, 0) for recipe in ALSO for split in SPLITS),
    *(Run(recipe, split, 0) for recipe in ("flip", "with a teacher, flip") for split in SPLITS),
]


@dataclass
class Bench:
    """Make runs and note their results.

    Args:
        args: of the command line.
        table: where the results go.
    """

    args: argparse.Namespace
    table: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ends = time.monotonic() + self.args.seconds
        self.taught = {split: threading.Event() for split in SPLITS}

    def make(self, run: Run) -> None:
        """Make a run and append its row; print why it failed, if it did."""
        folder = self.args.runs / f"{run.recipe.replace(' ', '_').replace(',', '')}-{run.split}-{run.seed}"
        if run.recipe in TEACHERS:
            self.taught[run.split].wait(max(0.0, min(1e6, self.ends - time.monotonic())))
        if time.monotonic() > self.ends:
            return
        try:
            found = self._teach(run, folder) if run.recipe == "teacher" else self._fit(run, folder)
        finally:
            if run.recipe == "teacher":
                self.taught[run.split].set()
        if found:
            self._note(run, found)

    def _teach(self, run: Run, folder: Path) -> dict[str, float] | None:
        out, start = self._soft_labels(run.split), time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        if not self._command(
            folder, "teach", f"--data.split_seed={run.split}", f"--out={out}", *self.args.teacher
        ):
            return None
        return {
            "accuracy": json.loads(out.with_suffix(".json").read_text())["cross_validated_accuracy"],
            "minutes": (time.monotonic() - start) / 60,
        }

    def _soft_labels(self, split: int) -> Path:
        return Path(self.args.runs).resolve() / f"soft-{split}.csv"

    def _fit(self, run: Run, folder: Path) -> dict[str, float] | None:
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        options = [*RECIPES[run.recipe]]
        if run.recipe in TEACHERS:
            options += [f"--data.soft_labels={self._soft_labels(run.split)}"]
            options += [f"--data.soft_labels_weight={self.args.soft_weight}"]
        if not self._command(
            folder, "fit", f"--config={HERE.parent / 'configs/strong.yaml'}", f"--seed_everything={run.seed}",
            f"--data.split_seed={run.split}", f"--model.weights={self.args.weights}", "--run_name=run",
            "--export=none", "--gradcam.every_n_epochs=0", *options, *self.args.fit,
        ):  # fmt: skip
            return None
        minutes = (time.monotonic() - start) / 60
        if not self._command(folder, "test", "--ckpt_path=checkpoints/run/best.ckpt"):
            return None
        report = json.loads((folder / "checkpoints/run/test.json").read_text())
        scores = {"accuracy": report["accuracy"], "loss": report["nll"], "ece": report["ece"]}
        return scores | {"minutes": minutes}

    def _command(self, folder: Path, subcommand: str, *options: str) -> bool:
        """Run a command; the log is in its folder."""
        command = [
            sys.executable, "-m", "flowers_pl", subcommand, f"--data.root={Path(self.args.photos).resolve()}",
            *options,
        ]  # fmt: skip
        threads = max(1, (os.cpu_count() or 1) // self.args.jobs)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        with open(folder / "output.txt", "ab") as output:
            process = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        self.running.append(process)
        try:
            code = process.wait(max(1.0, self.ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        if code:
            print(f"{folder.name} ended with {code}: {(folder / 'output.txt').read_text()[-1500:]}")
        return not code

    def _note(self, run: Run, found: dict[str, float]) -> None:
        row = run._asdict() | {name: f"{value:.5f}" for name, value in found.items()}
        row |= {"device": self.args.device, "torch": self.args.torch, "commit": self.args.commit}
        with self.lock:
            new = not self.table.exists()
            with open(self.table, "a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(*run, *(f"{name} {value:.4f}" for name, value in found.items()), flush=True)


def done(table: Path) -> dict[Run, dict[str, str]]:
    """Read the rows of finished runs."""
    if not table.exists():
        return {}
    with open(table, newline="") as file:
        return {Run(row["recipe"], int(row["split"]), int(row["seed"])): row for row in csv.DictReader(file)}


def summary(rows: dict[Run, dict[str, str]]) -> None:
    """Print each recipe's means, and its differences from `strong` on the same splits and seeds."""
    print("| recipe | runs | accuracy | loss | ECE | beside strong, in pairs | minutes |")
    print("|---|---|---|---|---|---|---|")
    for recipe in dict.fromkeys(run.recipe for run in PLAN):
        of = {run: row for run, row in rows.items() if run.recipe == recipe}
        if not of:
            print(f"| {recipe} | not measured | | | | | |")
            continue
        means = [
            f"{statistics.mean(float(row[name]) for row in of.values()):.4f}" if recipe != "teacher" else ""
            for name in ("loss", "ece")
        ]
        accuracy = statistics.mean(float(row["accuracy"]) for row in of.values())
        pairs = [
            float(row["accuracy"]) - float(rows[strong]["accuracy"])
            for run, row in of.items()
            if (strong := run._replace(recipe="strong")) in rows and recipe not in ("strong", "teacher")
        ]
        minutes = statistics.median(float(row["minutes"]) for row in of.values())
        beside = f"{100 * statistics.mean(pairs):+.2f} points" if pairs else ""
        print(f"| {recipe} | {len(of)} | {accuracy:.4f} | {' | '.join(means)} | {beside} | {minutes:.1f} |")


def pooled_calibration(folders: list[Path]) -> tuple[float, float, float, float]:
    """Return the pooled calibration error before and after a temperature, and what chance alone would give.

    The temperature is fitted on one half of each validation side and judged on the other, both ways; the
    predictions of all folders are pooled; 15 bins of equal mass. The last two numbers are the mean error of
    a perfectly calibrated model of the same confidences, by 200 simulations, and the mean temperature. One
    that a run has fitted itself is taken back first.
    """
    before, after, right, temperatures = [], [], [], []
    for folder in folders:
        with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        classes = json.loads((folder / "test.json").read_text())["classes"]
        shares = torch.tensor([[float(row[name]) for name in classes] for row in rows], dtype=torch.float64)
        own = FlowerClassifier.load(folder / "best.ckpt").temperature
        scores = (1 if own is None else own.value) * shares.clamp(1e-12).log()
        truth = torch.tensor([classes.index(row["path"].partition("/")[0]) for row in rows])
        half = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)) % 2 == 0)
        judged = torch.empty_like(scores)
        for part in (half, ~half):
            temperatures.append(Temperature.fit(scores[part], truth[part]).value)
            judged[~part] = (scores[~part] / temperatures[-1]).softmax(1)
        before.append(scores.softmax(1).amax(1).numpy())
        after.append(judged.amax(1).numpy())
        right.append((scores.argmax(1) == truth).numpy())
    hits, confidence = np.concatenate(right), np.concatenate(after)
    random = np.random.default_rng(0)
    chance = [equal_mass_error(confidence, random.random(len(confidence)) < confidence) for _ in range(200)]
    errors = equal_mass_error(np.concatenate(before), hits), equal_mass_error(confidence, hits)
    return *errors, float(np.mean(chance)), float(np.mean(temperatures))


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return asked.stdout.strip()


def main() -> None:
    """Make the runs that are not in the table yet, or print its summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", nargs="?", type=Path)
    parser.add_argument("--weights", help="ImageNet weights, a state_dict of torchvision's")
    parser.add_argument("--runs", type=Path, help="folder for what the runs leave")
    parser.add_argument("--only", nargs="*", help="recipes; default all of the plan")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop all runs after this time")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--soft_weight", type=float, default=0.7, help="of the teacher's soft labels")
    parser.add_argument("--fit", nargs="*", default=[], help="further options of fit, without their dashes")
    parser.add_argument("--teacher", nargs="*", default=[], help="options of teach, without their dashes")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    if args.summary:
        summary(done(args.table))
        if args.runs:
            tables = args.runs.glob("strong-[0-3]-0/checkpoints/run/test.json")
            folders = sorted(table.parent for table in tables)
            print(f"pooled ECE of {len(folders)}: before, after, chance, T:", *pooled_calibration(folders))
        return
    args.weights, args.torch = str(Path(args.weights).resolve()), torch.__version__
    args.device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
    args.commit = os.environ.get("COMMIT") or _commit()
    args.fit, args.teacher = ([f"--{option}" for option in group] for group in (args.fit, args.teacher))
    bench, finished = Bench(args, args.table), done(args.table)
    wanted = [run for run in PLAN if not args.only or run.recipe in args.only]
    for split in SPLITS:
        if bench._soft_labels(split).exists() or Run("teacher", split, 0) not in wanted:
            bench.taught[split].set()
    try:
        with ThreadPoolExecutor(args.jobs) as workers:
            list(workers.map(bench.make, [run for run in wanted if run not in finished][: args.most]))
    except KeyboardInterrupt:
        for process in bench.running:
            process.kill()
        raise


if __name__ == "__main__":
    main()

"""Compare `predict` with onnxruntime and Pillow in a loop.

    python -m benchmarks.predicting PHOTOS RUN    # RUN has best.ckpt, and final.onnx (export --format onnx)

Measures photos per second without imports and start-up; each reads all photos below PHOTOS.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.watching import machine
from flowers_pl import FlowerClassifier, FlowersDataModule, best_precision


def predict(photos: Path, run: Path, precision: str) -> int:
    """Predict as the command line does, and return the number of photos."""
    trainer = L.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, precision=precision,  # type: ignore[arg-type]
        use_distributed_sampler=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    data = FlowersDataModule(predict_root=str(photos))
    found = trainer.predict(FlowerClassifier.load(run / "best.ckpt"), datamodule=data) or []
    return sum(len(batch.rows) for batch in found)  # type: ignore[union-attr, misc]


def loop(photos: Path, run: Path) -> int:
    """Predict photo by photo, as most scripts do, and return the number of photos."""
    session = onnxruntime.InferenceSession(run / "final.onnx")
    (model_input,) = session.get_inputs()
    count = 0
    for file in sorted(photos.rglob("*.jpg")):
        pixels = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)[None]
        session.run(None, {model_input.name: pixels})
        count += 1
    return count


def rate(method: Callable[..., int], *args: object) -> float:
    """Return the photos per second of a method."""
    start = time.perf_counter()
    return method(*args) / (time.perf_counter() - start)


def main() -> None:
    """Run the methods in turn, each in a process of its own, and print rates and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    methods: dict[str, tuple[Any, ...]] = {  # a function and what it is given
        f"predict, {best_precision('cpu')}": (predict, args.photos, args.run, best_precision("cpu")),
        "predict, 32-true": (predict, args.photos, args.run, "32-true"),
        "onnxruntime with Pillow, in a loop": (loop, args.photos, args.run),
    }
    print(machine())
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(args.rounds):
        for name, method in methods.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                rates[name].append(alone.submit(rate, *method).result())
    medians = {name: statistics.median(found) for name, found in rates.items()}
    slowest = medians[list(methods)[-1]]
    for name, found in rates.items():
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        ratio = medians[name] / slowest
        print(f"{name}: {medians[name]:,.0f} photos per second ({spread}), {ratio:.2f} times the loop")


if __name__ == "__main__":
    main()

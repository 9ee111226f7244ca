"""Make the gallery: run every command on drawings and keep what it prints and the pictures that it leaves.

    python docs/make_gallery.py --weights FILE [--browser chromium]

Writes docs/gallery/*.txt and *.png. The drawings are made by `flowers_pl.draw_flower`; a minute on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from flowers_pl import draw_flower

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
GALLERY = Path(__file__).parent / "gallery"
SIZE = 160
PICTURES = {
    "plots/training_curves.png": "training_curves.png",
    "plots/confusion_matrix.png": "confusion_matrix.png",
    "plots/reliability.png": "reliability.png",
    "plots/misclassified.png": "misclassified.png",
    "gradcam/gradcam_grid.png": "gradcam.png",
    "gradcam/example.png": "gradcam_example.png",
    "gradcam/faithfulness.png": "faithfulness.png",
}


def draw(root: Path, per_class: int, first_seed: int) -> None:
    """Write drawings of every class to `root/<class>/`."""
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            draw_flower(name, first_seed + index, SIZE).save(root / name / f"{name}_{index:03d}.png")


def plant_faults(root: Path) -> None:
    """Give a folder of drawings one fault of each kind that `audit` looks for."""
    for index in range(3):  # wrong labels
        (root / f"rose/rose_{index:03d}.png").rename(root / f"tulip/bought_{index}.png")
    copy = Image.open(root / "daisy/daisy_005.png")
    copy.save(root / "daisy/daisy_005_again.jpg", quality=80)
    copy.save(root / "sunflower/unsorted.png")
    (root / "dandelion/scan.jpg").write_bytes((root / "dandelion/dandelion_004.png").read_bytes())
    torn = root / "tulip/tulip_007.png"
    torn.write_bytes(torn.read_bytes()[:2000])
    dark = np.asarray(Image.open(root / "rose/rose_009.png")) // 12
    Image.fromarray(dark.astype(np.uint8)).save(root / "rose/rose_009.png")
    sharp = Image.open(root / "daisy/daisy_011.png")
    sharp.filter(ImageFilter.GaussianBlur(6)).save(root / "daisy/daisy_011.png")
    Image.new("RGB", (SIZE, SIZE), (240, 240, 240)).save(root / "sunflower/blank.png")


def run(folder: Path, name: str, shown: str, hidden: str = "") -> None:
    """Run one command in `folder` and write what it prints to docs/gallery/<name>.txt.

    Args:
        folder: the working folder.
        name: of the text file.
        shown: subcommand and options, as the gallery shows them.
        hidden: options that it does not show, such as where this machine keeps the weights.
    """
    command = [sys.executable, "-m", "flowers_pl", *shlex.split(shown), *shlex.split(hidden)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout}")
    printed = done.stdout.replace(f"{folder}/", "").strip()
    (GALLERY / f"{name}.txt").write_text(f"$ python -m flowers_pl {shown}\n{printed}\n", encoding="utf-8")


def photograph(browser: str, folder: Path, picture: Path) -> None:
    """Take a picture of the audit's page, without the name of the temporary folder."""
    page = folder / "audit/audit.html"
    page.write_text(page.read_text(encoding="utf-8").replace(f"{folder}/", ""), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        options += [f"--user-data-dir={profile}", f"--screenshot={picture}", "--window-size=1000,1250"]
        subprocess.run([browser, *options, page.as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="state_dict of torchvision's mobilenet_v2")
    parser.add_argument("--browser", help="command of a browser that takes the picture of audit.html")
    args = parser.parse_args()
    weights = f"--model.weights={shlex.quote(args.weights)}"
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        draw(folder / "data/flowers", 12, first_seed=0)
        draw(folder / "new", 40, first_seed=7_000_000)
        draw(folder / "collected", 40, first_seed=9_000_000)
        plant_faults(folder / "collected")
        run(folder, "audit", "audit --data.root collected --write clean.csv", weights)
        epochs = "--unfreeze.head_epochs 2 --unfreeze.top_epochs 2"
        run(folder, "fit", f"fit --run_name my_run {epochs}", weights)
        run(folder, "explain", "explain --faithfulness 10")
        run(folder, "predict", "predict --data.predict_root new/dandelion")
        run(folder, "test", "test --data.test_root new")
        run(folder, "export", "export --format onnx")
        run(
            folder,
            "exported",
            "predict --exported checkpoints/my_run/final.onnx --data.predict_root new/dandelion",
        )
        paths = (path.relative_to(folder) for path in (folder / "checkpoints").rglob("*.*"))
        files = {re.sub(r"(tfevents).*", r"\1…", path.as_posix()) for path in paths}
        (GALLERY / "files.txt").write_text("\n".join(sorted(files)) + "\n", encoding="utf-8")
        for inside, kept in PICTURES.items():
            picture = Image.open(folder / "checkpoints/my_run" / inside).convert("RGB")
            picture.quantize(256).save(GALLERY / kept, optimize=True)
        if args.browser:
            photograph(args.browser, folder, GALLERY / "audit.png")


if __name__ == "__main__":
    main()

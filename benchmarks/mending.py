"""What mending labels is worth: accuracy on clean photos before and after, with planted errors in between.

    python -m benchmarks.mending PHOTOS --weights FILE [--test_share 0.7] [--share 0.2] [--epochs 4]

A share of the photos, duplicates kept together, is the clean test side. A share of the others is put into a
wrong class folder, at random. Then: `audit`; someone who knows the planted errors, and nothing else,
decides on each photo that the page asks about, by clicks in Chromium, and saves; `fit` and `test` before,
after it (`fit --data.review`), and without any planted error. Needs playwright.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from flowers_pl import FlowersDataModule
from flowers_pl.core.files import read_csv
from flowers_pl.core.system import processor


def lay_out(photos: Path, folder: Path, test_share: float, share: float, seed: int) -> dict[str, str]:
    """Link photos into folder/work, folder/right and folder/test, and return the planted errors.

    They are right classes by paths below folder/work.
    """
    data = FlowersDataModule(root=str(photos), val_fraction=test_share)
    data.prepare_data()
    data.setup("fit")
    dealt = random.Random(seed)
    training = [photo for photo in data.placed if photo.side == "train"]
    wrong = {photo.path for photo in dealt.sample(training, round(share * len(training)))}
    planted = {}
    for photo in data.placed:
        name = Path(photo.path).name
        for root in ("work", "right") if photo.side == "train" else ("test",):
            label = photo.label
            if root == "work" and photo.path in wrong:
                label = dealt.choice([one for one in data.classes if one != photo.label])
                planted[f"{label}/{name}"] = photo.label
            target = folder / root / label / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to((photos / photo.path).resolve())
    return planted


def mend(page_file: Path, planted: dict[str, str], browser: str, review: Path) -> Counter[str]:
    """Decide on every photo that the page asks about, by clicks, and save; return what was clicked."""
    from playwright.sync_api import sync_playwright

    clicks: Counter[str] = Counter()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(page_file.resolve().as_uri())
        while " left" in page.locator("#left").inner_text():
            path = page.locator("#view .name").inner_text()
            kind = "Keep as" if path not in planted else f"It is a {planted[path]}"
            page.locator("#view .choices button").get_by_text(kind).click()
            clicks["relabel" if path in planted else "keep"] += 1
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(review)
        chromium.close()
    return clicks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path, help="a folder of class folders")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="state_dict of torchvision's mobilenet_v2")
    parser.add_argument("--test_share", type=float, default=0.7, help="of the photos that are tested on")
    parser.add_argument("--image_size", type=int, default=160, help="pixels a side")
    parser.add_argument("--share", type=float, default=0.2, help="of the labels that are made wrong")
    parser.add_argument("--epochs", type=int, default=4, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the planted errors")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    weights = [] if args.weights == "IMAGENET1K_V1" else [f"--model.weights={Path(args.weights).resolve()}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = lay_out(args.photos, folder, args.test_share, args.share, args.seed)
        size = ["--data.image_size", str(args.image_size)]

        def run(*command: str) -> str:
            whole = [sys.executable, "-m", "flowers_pl", *command]
            done = subprocess.run(
                whole, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode:
                raise SystemExit(f"{command} failed:\n{done.stdout}")
            return done.stdout

        def accuracy(run_name: str, root: str, *more: str) -> float:
            epochs = [f"--unfreeze.{stage}_epochs={args.epochs}" for stage in ("head", "top")]
            fit = ["--run_name", run_name, "--export", "none", *epochs, *weights, *size, *more]
            run("fit", "--data.root", root, *fit)
            checkpoint = f"checkpoints/{run_name}/best.ckpt"
            run("test", "--data.test_root", "test", "--ckpt_path", checkpoint)
            tested = json.loads((folder / "checkpoints" / run_name / "test.json").read_text())
            print(f"{run_name}: {tested['accuracy']:.4f} on {tested['photos']} clean photos", flush=True)
            return float(tested["accuracy"])

        print(f"{len(planted)} errors planted; {processor()}", flush=True)
        begun = time.monotonic()
        run("audit", "--data.root", "work", *weights, *size)
        print(f"audit: {time.monotonic() - begun:.0f} s", flush=True)
        asked = json.loads((folder / "audit/audit.json").read_text())["asked"]
        page = folder / "audit/audit.html"
        print(f"{len(asked)} photos asked about, {len(asked.keys() & planted.keys())} of them planted errors")
        print(f"page: {page.stat().st_size / 1e6:.1f} MB", flush=True)
        begun = time.monotonic()
        clicks = mend(page, planted, args.browser, folder / "review.csv")
        print(f"clicks: {dict(clicks)} in {time.monotonic() - begun:.0f} s", flush=True)
        actions = Counter(row["action"] for row in read_csv(folder / "review.csv", ["action"]))
        assert actions == clicks, (actions, clicks)
        accuracy("before", "work")
        accuracy("after", "work", "--data.review", "review.csv")
        accuracy("right", "right")
        said = run(
            "audit", "--data.root", "work", *weights, *size, "--review", "review.csv", "--output", "again"
        )
        print(re.findall(r"\d+ photos? to decide on", said) or "nothing is asked again")


if __name__ == "__main__":
    main()

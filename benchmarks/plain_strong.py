"""Fine-tune by the strong recipe in plain torch, as someone who knows torch would write it in an afternoon.

    python benchmarks/plain_strong.py PHOTOS --weights FILE [--epochs 25] [--dtype float32] [--threads 2]

What `configs/strong.yaml` trains without a teacher: the head on a frozen backbone, then `features[4:]` and
the head with AdamW, rates that fall with depth, warm-up and a cosine, clipped gradients, label smoothing,
random resized crops of 256-pixel pictures, colours, and a running average of the weights. Photos are decoded
once and kept in memory, OpenCV augments, convolutions are channels-last, frozen blocks record no gradients,
and batch norm is in evaluation mode. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import datasets, models

MEAN, STD = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)


def decode(file: str, size: int) -> np.ndarray:
    """Read a photo: uint8 (size, size, 3)."""
    return cv2.resize(
        cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB), (size, size), interpolation=cv2.INTER_AREA
    )


def augment(photo: np.ndarray, size: int, least: float, random: np.random.Generator) -> np.ndarray:
    """Crop, flip and recolour a photo: float32 (size, size, 3), normalised."""
    stored = len(photo)
    area, ratio = random.uniform(least, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = min(stored, round(stored * math.sqrt(area * ratio)))
    height = min(stored, round(stored * math.sqrt(area / ratio)))
    left, top = random.integers(stored - width + 1), random.integers(stored - height + 1)
    part = cv2.resize(photo[top : top + height, left : left + width], (size, size))
    pixels = part[:, ::-1].astype(np.float32) if random.random() < 0.5 else part.astype(np.float32)
    brightness, contrast, saturation = random.uniform(0.8, 1.2, 3).astype(np.float32)
    pixels = np.clip(pixels * brightness, 0, 255)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    mean = grey.mean()
    pixels = np.clip(mean + (pixels - mean) * contrast, 0, 255)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    pixels = np.clip(grey + (pixels - grey) * saturation, 0, 255)
    return (pixels / 255 - MEAN) / STD


def factor(step: int, steps: int, warmup: float) -> float:
    """Return what the learning rate is multiplied by: a linear warm-up, then a cosine to zero."""
    first = warmup * steps
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / (steps - first)))


def groups_of(model: nn.Module, first: int, rate: float, head_rate: float) -> list[dict]:
    """Return the optimizer's groups: slower for every three blocks downwards; no decay of vectors."""
    groups = []
    for block in [*range(first, 19), None]:
        part = model.classifier if block is None else model.features[block]
        lr = head_rate if block is None else rate * 0.75 ** ((18 - block) // 3)
        for matrices in (True, False):
            weights = [weight for weight in part.parameters() if (weight.ndim > 1) == matrices]
            groups.append(
                {"params": weights, "lr": lr, "initial": lr, "weight_decay": 0.02 if matrices else 0}
            )
    return groups


def main() -> None:
    """Train both stages and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos")
    parser.add_argument("--weights", required=True, help="ImageNet weights, a state_dict of torchvision's")
    parser.add_argument("--head_epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=25, help="of stage 2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    begun = time.perf_counter()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    files = datasets.ImageFolder(args.photos)
    workers = ThreadPoolExecutor(args.threads)
    names, labels = [name for name, _ in files.samples], np.array([label for _, label in files.samples])
    large = np.stack(list(workers.map(lambda name: decode(name, 256), names)))
    small = np.stack(list(workers.map(lambda name: decode(name, 160), names)))
    order = random.permutation(len(names))
    held, kept = order[: len(names) // 5], order[len(names) // 5 :]
    model = models.mobilenet_v2(num_classes=len(files.classes))
    given = torch.load(Path(args.weights), weights_only=True)
    model.load_state_dict(
        {name: value for name, value in given.items() if "classifier" not in name}, strict=False
    )
    model.classifier[0] = nn.Dropout(0.3)
    model.to(memory_format=torch.channels_last)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16")

    def forward(photos: Tensor, first: int) -> Tensor:
        with torch.no_grad():
            maps = model.features[:first](photos)
        return model.classifier(model.features[first:](maps).mean((2, 3)))

    def batch(rows: np.ndarray, least: float) -> Tensor:
        seeds = random.integers(2**63, size=len(rows))
        made = workers.map(
            lambda row, seed: augment(large[row], 160, least, np.random.default_rng(seed)), rows, seeds
        )
        return torch.from_numpy(np.stack(list(made))).permute(0, 3, 1, 2)

    def validate() -> float:
        model.eval()
        right = 0
        with torch.inference_mode(), cast:
            for rows in np.array_split(held, -(-len(held) // 64)):
                photos = (small[rows].astype(np.float32) / 255 - MEAN) / STD
                scores = model(torch.from_numpy(photos).permute(0, 3, 1, 2))
                right += int((scores.argmax(1).numpy() == labels[rows]).sum())
        return right / len(held)

    found: dict[str, float] = {"decoding": time.perf_counter() - begun}
    for stage, first, epochs in ((1, 19, args.head_epochs), (2, 4, args.epochs)):
        model.requires_grad_(True)
        model.features[:first].requires_grad_(False)
        optimizer = torch.optim.AdamW(
            groups_of(model, first, 4e-4, 1e-3 if stage == 1 else 12e-4), fused=True
        )
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        average = [weight.detach().clone() for weight in trained]
        steps = epochs * -(-len(kept) // args.batch)
        step, seconds = 0, 0.0
        for epoch in range(epochs):
            start = time.perf_counter()
            model.train()
            model.features.eval()
            least = 0.8 if epoch >= epochs - 2 else 0.35
            shuffled = random.permutation(kept)
            for at in range(0, len(shuffled), args.batch):
                rows = shuffled[at : at + args.batch]
                for group in optimizer.param_groups:
                    group["lr"] = group["initial"] * factor(step, steps, 0.1)
                photos, targets = batch(rows, least), torch.from_numpy(labels[rows])
                optimizer.zero_grad()
                with cast:
                    loss = F.cross_entropy(forward(photos, first).float(), targets, label_smoothing=0.1)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 5)
                optimizer.step()
                step += 1
                if stage == 2:
                    torch._foreach_lerp_(
                        average, [weight.detach() for weight in trained], 1 - min(0.997, step / (9 + step))
                    )
            seconds += time.perf_counter() - start
            accuracy = validate()
        found[f"stage_{stage}"] = epochs * len(kept) / seconds
    with torch.no_grad():
        for weight, mean in zip(trained, average, strict=True):
            weight.copy_(mean)
    accuracy = validate()
    print(json.dumps(found | {"seconds": time.perf_counter() - begun, "val_accuracy": accuracy}))


if __name__ == "__main__":
    main()

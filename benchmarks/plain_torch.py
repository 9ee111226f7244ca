"""Fine-tune as torchvision's references do: a loop over a DataLoader that decodes and augments each time.

The network, recipe and sizes are the Keras notebook's; float32, batch norm in evaluation mode. Prints one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, models, transforms
from torchvision.transforms import InterpolationMode


def main() -> None:
    """Train both stages and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("--epochs", type=int, default=10, help="of each stage")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    begun = time.perf_counter()
    normalized = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    square = transforms.Resize((args.size, args.size))
    augmentation = [
        transforms.RandomAffine(25, (0.1, 0.1), (0.85, 1.15), interpolation=InterpolationMode.BILINEAR),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=0.2),
    ]
    training = datasets.ImageFolder(args.photos, transforms.Compose([square, *augmentation, *normalized]))
    validation = datasets.ImageFolder(args.photos, transforms.Compose([square, *normalized]))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0)).tolist()
    held = len(training) // 5
    train_batches = DataLoader(
        Subset(training, order[held:]), args.batch, shuffle=True, num_workers=args.workers
    )
    val_batches = DataLoader(Subset(validation, order[:held]), args.batch, num_workers=args.workers)
    model = models.mobilenet_v2(num_classes=len(training.classes))
    model.classifier[0] = nn.Dropout(0.3)
    found: dict[str, float] = {}
    for stage, first, rate in ((1, 19, 1e-3), (2, 15, 1e-4)):
        model.features.requires_grad_(False)
        model.features[first:].requires_grad_(True)
        if stage == 2:
            model.features[14].conv[-1].requires_grad_(True)
        optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], rate)
        photos, seconds = 0, 0.0
        for _ in range(args.epochs):
            start = time.perf_counter()
            model.train()
            model.features.eval()
            for pictures, labels in train_batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(pictures), labels).backward()
                optimizer.step()
                photos += len(labels)
            seconds += time.perf_counter() - start
            model.eval()
            with torch.inference_mode():
                for pictures, labels in val_batches:
                    model(pictures).argmax(1).eq(labels).sum().item()
        found[f"stage_{stage}"] = photos / seconds
    print(json.dumps(found | {"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()

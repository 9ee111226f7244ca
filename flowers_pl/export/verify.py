"""Compare an exported model with the model that it came from, and a quantised one with its original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.text import plural
from flowers_pl.data.decoding import resize_photo
from flowers_pl.data.drawings import KINDS, draw_flower
from flowers_pl.export.load import Exported
from flowers_pl.training.classifier import FlowerClassifier

NEAR_TIE = 0.01  # two classes whose probabilities differ by no more may swap ranks


@dataclass(frozen=True)
class Agreement:
    """How far an exported model and the model that it came from agree.

    Args:
        photos: number of photos compared.
        agreeing: number of photos for which the likeliest class is the same.
        near_ties: number of the others whose two likeliest classes the model puts within `NEAR_TIE`.
        largest_difference: between any two probabilities of a photo and a class.
        source: what one of the photos is called.
    """

    photos: int
    agreeing: int
    near_ties: int
    largest_difference: float
    source: str = "validation image"

    def __str__(self) -> str:
        return (
            f"the checkpoint's class for {self.agreeing} of {plural(self.photos, self.source)}"
            f" ({self.near_ties} of the others are near ties), probabilities at most"
            f" {self.largest_difference:.2g} apart"
        )

    def verify(self, tolerance: float = 1e-3) -> None:
        """Raise unless all likeliest classes but near ties agree and probabilities are within `tolerance`.

        Raises:
            FlowersError: they differ by more, or nothing was compared.
        """
        if not self.photos:
            raise FlowersError("The exported model could not be checked, because no photo could be read.")
        if self.agreeing + self.near_ties < self.photos or not self.largest_difference < tolerance:
            raise FlowersError(
                f"The exported model differs from its checkpoint: {self}, where less than {tolerance:g} is"
                " allowed; do not use it, and report this with the versions of torch and onnxruntime."
            )


@torch.inference_mode()
def check_export(
    exported: Exported, model: FlowerClassifier, photos: Iterable[Tensor], source: str = "validation image"
) -> Agreement:
    """Compare an exported model with its checkpoint, on photos at their own sizes.

    Args:
        exported: resizes photos itself.
        model: gets each photo as `load_photo` would give it.
        photos: uint8 (3, H, W), RGB, each of any size.
        source: what one of the photos is called in reports.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from flowers_pl import Exported, FlowerClassifier, check_export, export_torch
    >>> model = FlowerClassifier(weights=None)
    >>> model.build(["daisy", "rose"], image_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_torch(model, Path(folder, "final.pt2"))
    ...     exported = Exported.open(Path(folder, "final.pt2"))
    >>> agreement = check_export(exported, model, [torch.zeros(3, 90, 120, dtype=torch.uint8)])
    >>> agreement.photos, agreement.largest_difference
    (1, 0.0)
    >>> agreement.verify()  # would raise FlowersError if they differed
    """
    model.eval()
    num_photos = agreeing = near_ties = 0
    largest = 0.0
    for photo in photos:
        resized = resize_photo(photo, model.image_size)[None].to(model.device)
        expected = model.probabilities(resized)[0].cpu().numpy()
        actual = exported(photo[None])[0]
        first, second = np.sort(expected)[::-1][:2]
        same = expected.argmax() == actual.argmax()
        num_photos, agreeing = num_photos + 1, agreeing + int(same)
        near_ties += int(not same and first - second <= NEAR_TIE)
        largest = float(np.maximum(largest, np.abs(expected - actual).max()))  # unlike max(), keeps NaN
    return Agreement(num_photos, agreeing, near_ties, largest, source)


def generated_images() -> Iterator[Tensor]:
    """Yield images to check a model on without photos: drawings of flowers and noise, of several sizes.

    Returns:
        20 drawings and 5 images of noise, uint8 (3, H, W), RGB, always the same.
    """
    noise = torch.Generator().manual_seed(0)
    for seed in range(5):
        height = 60 + 70 * seed
        for kind in KINDS[: 4 if seed else 5]:
            drawing = np.array(draw_flower(kind, seed, height + 40))[:height]
            yield torch.from_numpy(drawing).permute(2, 0, 1)
        yield torch.randint(256, (3, height, height + 31), dtype=torch.uint8, generator=noise)


class AccuracyLoss(NamedTuple):
    """What quantisation costs, as shares of the photos.

    Args:
        before: accuracy of the float model.
        after: accuracy of the quantised model.
        low: lower end of the 95 % interval of `before - after`.
        high: upper end.
    """

    before: float
    after: float
    low: float
    high: float

    def __str__(self) -> str:
        gain, low, high = (100 * share for share in (self.after - self.before, -self.high, -self.low))
        return (
            f"accuracy {self.before:.2%} in float32, {self.after:.2%} in int8: {gain:+z.2f} points"
            f" (95 % interval {low:+z.2f} to {high:+z.2f})"
        )


def accuracy_loss(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> AccuracyLoss:
    """Compare two models on the same photos, with a paired bootstrap over the photos.

    Args:
        before: float (photos, classes), probabilities of the float model.
        after: float (photos, classes), probabilities of the quantised model.
        labels: int (photos,).
    """
    right = [(shares.argmax(1) == labels).astype(int) for shares in (before, after)]
    num_photos = len(labels)
    lost, gained = ((right[0] - right[1] == sign).mean() for sign in (1, -1))
    # Counting resampled photos is drawing from a multinomial: three numbers per sample, not one per photo.
    samples = np.random.default_rng(0).multinomial(num_photos, [lost, gained, 1 - lost - gained], 10_000)
    low, high = np.quantile((samples[:, 0] - samples[:, 1]) / num_photos, [0.025, 0.975])
    return AccuracyLoss(float(right[0].mean()), float(right[1].mean()), float(low), float(high))

"""Define FlowerModel: a network with its classes, its stage and its novelty score, as checkpoints hold it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Self, overload

import lightning as L
import torch
from torch import Tensor

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.core.text import printable
from flowers_pl.data.decoding import PhotoSource, UnreadablePhoto, load_photo
from flowers_pl.network.answers import Temperature, final_logits, with_mirror
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.mobilenet import IMAGENET_MEAN, IMAGENET_STD, FlowerNet
from flowers_pl.network.novelty import Novelty
from flowers_pl.training.checkpoint_files import read_checkpoint, unusable
from flowers_pl.training.refit import Refit
from flowers_pl.training.stage import Stage

Photos = list[Any] | tuple[Any, ...]  # of PhotoSource
BATCH = 64  # photos that `classify` computes at a time


class FlowerModel(L.LightningModule):
    """A network with its classes, its stage and its novelty score: built, saved, loaded and used.

    Args:
        dropout: share of the pooled features dropped in training.
        seed: of the head's initial weights.
        flip_test: whether a photo is judged together with its mirror image.
    """

    network: FlowerNet

    def __init__(self, dropout: float, seed: int, flip_test: bool = False) -> None:
        super().__init__()
        self.dropout, self.seed, self.flip_test = dropout, seed, flip_test
        self.stage = Stage()
        self.classes: list[str] = []
        self.image_size = 0
        self.frozen: FrozenPart | None = None
        self.novelty: Novelty | None = None
        self.temperature: Temperature | None = None
        self.refit: Refit | None = None  # of the run that this one repeats on all photos
        self._restored = False

    def build(
        self,
        classes: list[str],
        image_size: int,
        mean: Iterable[float] = IMAGENET_MEAN,
        std: Iterable[float] = IMAGENET_STD,
    ) -> None:
        """Build the network, frozen but for the head; its initial weights are a function of `seed`."""
        self.classes, self.image_size = list(classes), image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = FlowerNet(len(classes), self.dropout, mean, std)
        self.network.train_top_layers(self.stage.layers)

    def enter_stage(self, stage: Stage) -> None:
        """Freeze and unfreeze layers for a stage; the caller replaces the optimizer."""
        self.stage, self.frozen = stage, None
        if self.classes:
            self.network.train_top_layers(stage.layers)

    @property
    def _data(self) -> Any:
        """Return the Trainer's datamodule, which its annotations lack; None where there is none."""
        return getattr(self.trainer, "datamodule", None)

    @property
    def weak_epochs(self) -> int:
        """Return how many of a stage's last epochs have weak augmentation."""
        return getattr(getattr(self._data, "augmentation", None), "weak_epochs", 0)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as in `nn.Module`, and drop the frozen part that was made of others."""
        self.frozen = None
        return super().load_state_dict(*args, **kwargs)

    def forward(self, photos: Tensor, keys: Tensor | None = None) -> Tensor:
        """Compute logits of photos.

        Args:
            photos: (N, 3, size, size), RGB: uint8, or float on the same scale of 0 to 255.
            keys: int64 (N,), one for each photo, for the dropout.

        Returns:
            Logits, float (N, num_classes).
        """
        return self.network(photos, keys)

    def probabilities(self, photos: Tensor, network: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Compute the probabilities of photos, float (N, num_classes): the final ones, calibrated where the
        model is, and with the mirror images where it judges these too.

        Args:
            photos: as `forward` takes them.
            network: computes logits of photos in place of the model's own.
        """
        compute = network or self.network
        logits = with_mirror(compute, photos) if self.flip_test else compute(photos)
        return final_logits(logits, self.temperature).softmax(1)

    # ---------------------------------------------------------------- photos

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a trained model, in evaluation mode; no photos or weights are needed, and no code is run.

        Raises:
            FlowersError: there is no such file, or it is not a checkpoint of this project.
        """
        checkpoint = read_checkpoint(path)
        try:
            model = cls(**checkpoint["hyper_parameters"])
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
            if faults := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
                raise ValueError(f"{faults[0]} is not finite")
        except FlowersError:
            raise
        except Exception as error:  # of many kinds, by what is wrong in the file
            raise unusable(path, error) from error
        return model.eval()

    @overload
    def classify(self, photo: PhotoSource) -> dict[str, float]: ...

    @overload
    def classify(self, photo: Photos) -> list[dict[str, float]]: ...

    def classify(self, photo: PhotoSource | Photos) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each class for a photo, in descending order.

        Args:
            photo: a path, bytes, an open file, a PIL image or an array, as `read_photo` takes it; or a list
                of these, which is computed as a batch.

        Returns:
            The probabilities by class name; for a list, a list of these.

        Raises:
            FlowersError: a photo cannot be read.
        """
        rows = self._compute(photo, self.probabilities).tolist()
        ranked = [
            dict(sorted(zip(self.classes, row, strict=True), key=lambda item: -item[1])) for row in rows
        ]
        return ranked if isinstance(photo, (list, tuple)) else ranked[0]

    @overload
    def unlikeness(self, photo: PhotoSource) -> float | None: ...

    @overload
    def unlikeness(self, photo: Photos) -> list[float] | None: ...

    def unlikeness(self, photo: PhotoSource | Photos) -> float | list[float] | None:
        """Return the novelty score of a photo: above 1 it is probably of none of the classes.

        It is that of the photo as it is, never of its mirror image.

        Args:
            photo: as `classify` takes it.

        Returns:
            The score; for a list, a list of scores. None if the checkpoint has no score; the `best.ckpt` of a
            run that has ended has one.

        Raises:
            FlowersError: a photo cannot be read.
        """
        novelty = self.novelty
        if novelty is None:
            self._read(photo)
            return None
        scores = self._compute(photo, lambda photos: novelty(self.network.features(photos))).tolist()
        return scores if isinstance(photo, (list, tuple)) else scores[0]

    @torch.inference_mode()
    def _compute(self, source: PhotoSource | Photos, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function to photos, as many at a time as a batch of a moderate size holds."""
        parts = self._read(source).split(BATCH)
        self.eval()
        return torch.cat([function(part.to(self.device)).cpu() for part in parts])

    def _read(self, source: PhotoSource | Photos) -> Tensor:
        """Read a photo or a list of photos: uint8 (N, 3, size, size)."""
        sources = source if isinstance(source, (list, tuple)) else [source]
        photos = torch.empty(len(sources), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for index, photo in enumerate(sources):
            try:
                photos[index] = load_photo(photo, self.image_size)
            except UnreadablePhoto as reason:
                is_path = isinstance(photo, (str, os.PathLike))
                name = repr(printable(str(photo))) if is_path else f"Photo {index + 1} of {len(sources)}"
                raise FlowersError(f"{name} cannot be read: {reason}.") from reason
        return photos

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that the model needs besides its weights, in plain types, under this project's key."""
        checkpoint[KEY] = {
            "version": 1,
            "classes": self.classes,
            "image_size": self.image_size,
            "mean": self.network.mean.flatten().tolist(),
            "std": self.network.std.flatten().tolist(),
            "stage": asdict(self.stage),
            "precision": str(self.trainer.precision),
            "data": self._data.settings() if self._data else {},
            "left_out": dict(Counter(photo.kind for photo in self._data.left_out)) if self._data else {},
            "review": dict(self._data.reviewed) if self._data else {},
            "unlike": self.novelty.state() if self.novelty else None,
            "temperature": self.temperature.state() if self.temperature else None,
            "refit_of": self.refit.state() if self.refit else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the checkpoint is for, and enter the stage that it was saved in.

        Raises:
            FlowersError: the data have other classes or another image size.
        """
        saved = checkpoint[KEY]
        for name, value, option in (
            ("classes", self.classes, "--data.root"),
            ("image_size", self.image_size, "--data.image_size"),
        ):
            if self.classes and value != saved[name]:
                raise FlowersError(
                    f"{option}: the checkpoint was trained with {name} {saved[name]}, not {value}; resume"
                    " with what it was trained with, or start a new run."
                )
        if not self.classes:
            self.build(saved["classes"], saved["image_size"], saved["mean"], saved["std"])
        self.novelty = Novelty.from_state(saved.get("unlike"))
        self.temperature = Temperature.from_state(saved.get("temperature"))
        self.refit = Refit.from_state(saved.get("refit_of"))
        self.enter_stage(Stage(**saved["stage"] | {"ended": False}))  # the stage callbacks find out
        self._restored = True

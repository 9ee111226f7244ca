"""A trained model as it is served: a checkpoint's network or an exported file, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowers_pl.core.names import KEY
from flowers_pl.core.system import best_precision
from flowers_pl.data.batches import Batch
from flowers_pl.network.answers import whole_backbone
from flowers_pl.runs.judgement import Judgement, identity_of, judgement_of
from flowers_pl.training.checkpoint_files import read_checkpoint
from flowers_pl.training.classifier import DTYPES, FlowerClassifier

Compute = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Explain = Callable[[Tensor, list[int]], np.ndarray]


@dataclass(frozen=True)
class ServedModel:
    """A model that answers.

    Args:
        name: of its run, or of the exported file.
        classes: class names, in the order of the probabilities.
        image_size: height and width in pixels of the photos that it takes.
        judgement: how good it is, and on what it was judged.
        part: photos that one thread computes best at a time.
        compute: from uint8 (N, 3, size, size) to probabilities, float32 (N, classes), and novelty scores,
            float32 (N,), or None where the model has none; the numbers are `predict`'s.
        explain: from such photos and a class for each to heat maps, float32 (N, size, size), 0 to 1; None
            where the model cannot.
    """

    name: str
    classes: list[str]
    image_size: int
    judgement: Judgement
    part: int
    compute: Compute
    explain: Explain | None


def open_checkpoint(path: Path) -> ServedModel:
    """Load a checkpoint, in the precision that `predict` would choose for it.

    The arithmetic is `predict`'s: the whole backbone as a `FrozenPart`, the rest by `predict_step`.

    Raises:
        FlowersError: there is no such file, or it is not a checkpoint of this project.
    """
    from flowers_pl.explain.activation_maps import class_activation_maps

    checkpoint = read_checkpoint(path)
    exact = checkpoint[KEY].get("precision") == "32-true"
    dtype = DTYPES["32-true" if exact else best_precision()]
    model = FlowerClassifier.load(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen = whole_backbone(model.to(device).network, dtype, model.image_size, model.flip_test)

    @torch.inference_mode()
    def compute(photos: Tensor) -> tuple[Tensor, Tensor | None]:
        photos, count = photos.to(device), len(photos)
        labels, rows = torch.full((count,), -1), torch.arange(count)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            batch = Batch(photos, labels, rows, count, features=frozen(photos))
            found = model.predict_step(batch, 0)
        return found.probabilities.float().cpu(), None if found.unlike is None else found.unlike.float().cpu()

    def explain(photos: Tensor, targets: list[int]) -> np.ndarray:
        return class_activation_maps(model, photos, targets)

    judgement = judgement_of(path.parent, identity_of(checkpoint))
    name = path.resolve().parent.name
    return _warmed(
        ServedModel(name, model.classes, model.image_size, judgement, frozen.chunk, compute, explain)
    )


def open_exported(path: Path) -> ServedModel:
    """Open a file that `export` wrote; only that of `--format web` has novelty scores and heat maps.

    Raises:
        FlowersError: there is no such file, it is damaged or from elsewhere, or its runtime is missing.
    """
    from flowers_pl.explain.activation_maps import scaled_maps
    from flowers_pl.export.load import Exported
    from flowers_pl.export.write import MAPS, OUTPUT, UNLIKE

    torch.set_num_threads(1)  # each of the engine's threads computes alone
    exported = Exported.open(path)

    def compute(photos: Tensor) -> tuple[Tensor, Tensor | None]:
        found = exported.explained(photos.numpy())
        unlike = torch.from_numpy(found[UNLIKE]) if UNLIKE in found else None
        return torch.from_numpy(found[OUTPUT]), unlike

    def explain(photos: Tensor, targets: list[int]) -> np.ndarray:
        maps = exported.explained(photos.numpy())[MAPS][np.arange(len(targets)), targets]
        return scaled_maps(torch.from_numpy(maps), photos.shape[2:]).numpy()

    return _warmed(
        ServedModel(
            path.stem,
            exported.classes,
            exported.image_size,
            Judgement() if path.stem.endswith("_int8") else judgement_of(path.parent),
            8,
            compute,
            explain if MAPS in exported.outputs else None,
        )
    )


def _warmed(model: ServedModel) -> ServedModel:
    """Compute once, for what is prepared on first use must not be prepared by two threads at once."""
    model.compute(torch.zeros(1, 3, model.image_size, model.image_size, dtype=torch.uint8))
    return model


def heat_picture(heat: np.ndarray) -> bytes:
    """Draw a heat map, float32 (H, W), 0 to 1, in the colours of `explain`'s: the bytes of a PNG, RGB."""
    from matplotlib import colormaps

    from flowers_pl.explain.figures import HEAT

    stream = BytesIO()
    Image.fromarray(colormaps[HEAT](heat, bytes=True)[..., :3]).save(stream, "PNG", compress_level=1)
    return stream.getvalue()

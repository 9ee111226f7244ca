"""Class activation maps: what in a photo speaks for a class, and pictures of it.

The maps are pytorch-grad-cam's, of a copy of the network. The library puts a model into evaluation mode,
fills and clears `.grad` of every parameter and hangs hooks into it; done to a copy (9 MB, 20 ms) none of that
can reach the model, whatever happens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytorch_grad_cam
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.classifier import FlowerClassifier
from flowers_pl.decode import resize_photo
from flowers_pl.errors import FlowersError
from flowers_pl.mobilenet import FlowerNet

METHODS: dict[str, type[pytorch_grad_cam.GradCAM]] = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam++": pytorch_grad_cam.GradCAMPlusPlus,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "xgradcam": pytorch_grad_cam.XGradCAM,
    "layercam": pytorch_grad_cam.LayerCAM,
    "eigencam": pytorch_grad_cam.EigenCAM,
    "eigengradcam": pytorch_grad_cam.EigenGradCAM,
    "scorecam": pytorch_grad_cam.ScoreCAM,
    "ablationcam": pytorch_grad_cam.AblationCAM,
}
"""Of pytorch-grad-cam. The last two run the network once for each channel: 1,280 times a photo by default."""

HEAT = "turbo"  # blue is cold and red is hot, as readers of heat maps expect; smoother than jet
_BATCH = 32
_AT_ONCE = {"scorecam": 1, "ablationcam": 1}  # 1,280 masked copies of one photo of 160 pixels are 390 MB


class StandIn(NamedTuple):
    """A copy of a network for the library to work on.

    Args:
        network: in evaluation mode, frozen, float32; takes normalised photos.
        layer: the module in it whose output the maps are made from.
    """

    network: FlowerNet
    layer: nn.Module


@contextmanager
def stand_in(model: FlowerClassifier | FlowerNet, layer: str | None = None) -> Iterator[StandIn]:
    """A copy of the network, with gradients on and autocast off inside, whatever the caller has.

    It takes photos that are normalised already (`normalised`), because the library's methods that hide pixels
    put zeros or noise in their place, and mean the network's scale by that. Activations are never overwritten
    in place: the library keeps views of them, so that a batch norm would be seen after the ReLU6 behind it.

    Args:
        model: on any device, in any mode; is not touched.
        layer: dotted name of a module inside the network; None for the last block of the backbone.

    Raises:
        FlowersError: there is no such layer.
    """
    source = model.network if isinstance(model, FlowerClassifier) else model
    device = source.head.weight.device
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        network = copy.deepcopy(source).float().requires_grad_(False).eval()
        network.mean.zero_()
        network.std.fill_(1 / 255)
        for module in network.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = False
        yield StandIn(network, _layer(network, layer))


def normalised(model: FlowerClassifier | FlowerNet, photos: Tensor) -> Tensor:
    """Photos, (N, 3, H, W), 0 to 255, as the first convolution sees them: float32, on the model's device."""
    network = model.network if isinstance(model, FlowerClassifier) else model
    with torch.inference_mode(False), torch.no_grad():
        mean, std = network.mean.float(), network.std.float()
        return (photos.to(mean.device, torch.float32) / 255 - mean) / std


def _layer(network: FlowerNet, name: str | None) -> nn.Module:
    last = f"backbone.{len(network.backbone) - 1}"
    try:
        return network.get_submodule(last if name is None else name)
    except AttributeError:
        raise _no_layer(network, name) from None


def _no_layer(network: FlowerNet, name: str | None) -> FlowersError:
    blocks = [f"backbone.{place}" for place in range(len(network.backbone))]
    inner = [name for name, _ in network.named_modules() if name.startswith("backbone.1.")][-1]
    return FlowersError(
        f"--layer: {name!r} is no layer of the network that gives feature maps; try one of {blocks[0]} to"
        f" {blocks[-1]}, or a layer inside one, such as {inner}."
    )


def class_activation_maps(
    model: FlowerClassifier | FlowerNet,
    photos: Tensor,
    targets: Sequence[int] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
) -> np.ndarray:
    """Heat maps of what speaks for a class.

    Each map is scaled to reach from 0 to 1, so maps do not tell how strong the evidence is; where nothing
    speaks for the class, the map is 0 everywhere. At the default layer Grad-CAM is class activation mapping,
    relu(sum_k W[c, k] A_k) (Zhou et al. 2016; Selvaraju et al. 2017, section 3.1). EigenCAM does not look at
    the class, and the sign of its maps is arbitrary.

    Args:
        model: a network on any device, frozen or not; is left as it was.
        photos: (N, 3, H, W), RGB, values 0 to 255: uint8, or float.
        targets: the class that each photo's map is for; None for the likeliest.
        method: a key of `METHODS`.
        layer: dotted name of a module inside the network, such as "backbone.17"; None for the last block.

    Returns:
        float32 (N, H, W), 0 to 1.

    Raises:
        FlowersError: there is no such method or layer.
        ValueError: `targets` are not N classes of the network.
    """
    if method not in METHODS:
        raise FlowersError(f"--method must be one of {', '.join(METHODS)}, not {method!r}.")
    with stand_in(model, layer) as (network, module):
        _check_targets(targets, len(photos), network.head.out_features)
        module.register_forward_hook(lambda _, __, maps: _begin_graph(network, layer, maps))
        cam = METHODS[method](network, [module])
        inputs = normalised(model, photos)
        found = [np.empty((0, *photos.shape[2:]), np.float32)]
        step = _AT_ONCE.get(method, _BATCH)
        for start in range(0, len(inputs), step):
            some = slice(start, start + step)
            chosen = None if targets is None else [ClassifierOutputTarget(one) for one in targets[some]]
            found.append(cam(inputs[some], chosen))
    return np.concatenate(found)


def _begin_graph(network: FlowerNet, layer: str | None, maps: Any) -> Tensor:
    """Let gradients begin at the layer: none are needed before it, and a frozen backbone would give none."""
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise _no_layer(network, layer)
    return maps.detach().requires_grad_()


def _check_targets(targets: Sequence[int] | None, photos: int, classes: int) -> None:
    if targets is not None and (len(targets) != photos or not all(0 <= one < classes for one in targets)):
        raise ValueError(f"targets must be {photos} classes from 0 to {classes - 1}, not {list(targets)}")


# ---------------------------------------------------------------- photos and pictures


class Explained(NamedTuple):
    """A photo and what was made of it.

    Args:
        photo: uint8 (3, H, W), RGB, at its own size.
        heat: float32 (h, w), 0 to 1, of any size: the map for `target`.
        probabilities: of each class.
        target: the class that the map is for.
        truth: the class that the photo shows, where known.
    """

    photo: Tensor
    heat: np.ndarray
    probabilities: dict[str, float]
    target: str
    truth: str | None = None

    @property
    def predicted(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


def explain_photos(
    model: FlowerClassifier,
    photos: Sequence[Tensor],
    truths: Sequence[str | None] | None = None,
    target: str | None = None,
    method: str = "gradcam",
    layer: str | None = None,
) -> list[Explained]:
    """Photos of any size with their heat maps and probabilities.

    Args:
        model: a trained model; is left as it was.
        photos: uint8 (3, H, W) each, RGB.
        truths: the class that each photo shows, where known.
        target: the class that the maps are for; None for each photo's likeliest.
        method: as in `class_activation_maps`.
        layer: likewise.

    Raises:
        FlowersError: there is no such target, method or layer.
    """
    if target is not None and target not in model.classes:
        raise FlowersError(f"--target must be one of {', '.join(model.classes)}, not {target!r}.")
    if not photos:
        return []
    squares = torch.stack([resize_photo(photo, model.image_size) for photo in photos])
    with stand_in(model) as (network, _), torch.no_grad():
        parts = torch.split(normalised(model, squares), _BATCH)
        shares = torch.cat([network(part).softmax(1) for part in parts]).cpu().numpy()
    targets = shares.argmax(1).tolist() if target is None else [model.classes.index(target)] * len(photos)
    heats = class_activation_maps(model, squares, targets, method, layer)
    known = [None] * len(photos) if truths is None else truths
    named = [dict(zip(model.classes, share.tolist(), strict=True)) for share in shares]
    names = [model.classes[one] for one in targets]
    return [Explained(*parts) for parts in zip(photos, heats, named, names, known, strict=True)]


def heat_at(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map, (h, w), bilinearly resized: float32 (height, width), 0 to 1."""
    resized = F.interpolate(torch.from_numpy(heat)[None, None], (height, width), mode="bilinear")
    return resized[0, 0].clamp(0, 1).numpy()


def overlay(photo: Tensor, heat: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """A map laid over a photo, at the photo's size.

    Args:
        photo: uint8 (3, H, W), RGB.
        heat: float32 (h, w), 0 to 1.
        strength: share of the heat's colours, 0 to 1.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    colours = 255 * colormaps[HEAT](heat_at(heat, *photo.shape[1:]))[..., :3]
    pixels = photo.permute(1, 2, 0).numpy()
    return np.asarray((1 - strength) * pixels + strength * colours + 0.5, dtype=np.uint8)


def explanation_figure(explained: Explained, title: str = "", most: int = 5) -> Figure:
    """A photo, its heat map, both together, and its likeliest classes (`most` of them)."""
    photo, (height, width) = explained.photo, explained.photo.shape[1:]
    aspect = min(max(width / height, 0.4), 2.5)
    figure = Figure(figsize=(3 * 3 * aspect**0.5 + 4, 3 * aspect**-0.5 + 0.9), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 0.9])
    _picture(axes[0], photo.permute(1, 2, 0).numpy(), f"photo ({width} x {height})")
    heat = axes[1].imshow(heat_at(explained.heat, height, width), cmap=HEAT, vmin=0, vmax=1)
    axes[1].set(xticks=[], yticks=[], title=f"heat map for {explained.target}")
    _picture(axes[2], overlay(photo, explained.heat), "overlay")
    label = "speaks for the class (1: the most in this photo)"
    figure.colorbar(heat, ax=axes[:3], location="bottom", shrink=0.4, aspect=40, label=label)
    _bars(axes[3], explained, most)
    truth = "" if explained.truth is None else f", truly {explained.truth}"
    figure.suptitle(title or f"predicted {explained.predicted}{truth}")
    return figure


def _picture(axes: Axes, pixels: np.ndarray, title: str, colour: str = "black") -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, color=colour)


def _bars(axes: Axes, explained: Explained, most: int) -> None:
    top = sorted(explained.probabilities.items(), key=lambda item: -item[1])[:most]
    names = [name for name, _ in top]
    bars = axes.barh(range(len(top)), [share for _, share in top], color="tab:blue")
    axes.bar_label(bars, [f"{share:.1%}" for _, share in top], padding=3)
    axes.set(xlim=(0, 1.3), xticks=[], yticks=range(len(top)), yticklabels=names, title="probability")
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def grid_figure(
    explained: Sequence[Explained], classes: Sequence[str], title: str = "", columns: int = 4
) -> Figure:
    """Photos beside their overlays: a row for each class that is there, right predictions before wrong ones.

    Args:
        explained: any number; those beyond `columns` of a class are left out, but half of a row is kept for
            wrong predictions where there are so many.
        classes: the order of the rows. Photos of unknown class stand in the row of their predicted class.
        title: above all.
        columns: at most so many photos a row.
    """
    rows = {name: [one for one in explained if (one.truth or one.predicted) == name] for name in classes}
    rows = {name: _row(some, columns) for name, some in rows.items() if some}
    across = max(map(len, rows.values()), default=1)
    figure = Figure(figsize=(3.4 * across + 0.5, 2 * max(len(rows), 1) + 0.5), layout="constrained")
    grid = figure.subplots(max(len(rows), 1), across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, some) in zip(grid, rows.items(), strict=False):
        line[0].text(-0.04, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center")
        for axes, one in zip(line, some, strict=False):
            colour = "black" if one.truth is None else "firebrick" if _wrong(one) else "darkgreen"
            label = f"{one.predicted} {one.probabilities[one.predicted]:.0%}"
            _picture(axes, _beside(one), f"wrong: {label}" if _wrong(one) else label, colour)
    figure.suptitle(title or "Predictions and the heat maps behind them")
    return figure


def _row(some: Sequence[Explained], columns: int) -> list[Explained]:
    """At most `columns` photos of a class, right ones first, with room for wrong ones."""
    wrong = [one for one in some if _wrong(one)]
    right = [one for one in some if not _wrong(one)]
    right = right[: max(columns - len(wrong), columns - columns // 2)]
    return right + wrong[: columns - len(right)]


def _wrong(one: Explained) -> bool:
    return one.truth is not None and one.truth != one.predicted


def _beside(one: Explained) -> np.ndarray:
    """A photo and its overlay side by side, squashed so that rows are even: uint8 (160, 326, 3)."""
    photo = resize_photo(one.photo, 160)
    gap = np.full((160, 6, 3), 255, np.uint8)
    return np.hstack([photo.permute(1, 2, 0).numpy(), gap, overlay(photo, one.heat)])


# ---------------------------------------------------------------- during training


class LogGradCam(L.Callback):
    """Shows TensorBoard what the model looks at: a Grad-CAM grid of the same validation photos each time.

    Training goes as it would without: no global generator is used, and the model is not touched.

    Args:
        photos: how many, as even over the classes as can be.
        every_n_epochs: after each so many epochs.
        seed: decides which photos.
    """

    def __init__(self, photos: int = 8, every_n_epochs: int = 1, seed: int = 0) -> None:
        if min(photos, every_n_epochs) < 1:
            raise FlowersError(
                "--grad_cam.photos and --grad_cam.every_n_epochs must be at least 1, not"
                f" {photos} and {every_n_epochs}."
            )
        self.photos, self.every_n_epochs, self.seed = photos, every_n_epochs, seed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if training and due and trainer.is_global_zero and boards:
            self._log(trainer, pl_module, boards)

    def _log(self, trainer: L.Trainer, module: L.LightningModule, boards: list[TensorBoardLogger]) -> None:
        if not isinstance(module, FlowerClassifier):
            raise TypeError(f"LogGradCam explains a FlowerClassifier, not a {type(module).__name__}")
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it; its annotations do not know
        places = even_sample(data.val_photos.labels, self.photos, self.seed)
        truths = [module.classes[label] for label in data.val_photos.labels[places]]
        explained = explain_photos(module, list(data.val_photos.read(places)), truths)
        title = f"Grad-CAM after epoch {trainer.current_epoch}"  # counted from 0, as in metrics.csv
        figure = grid_figure(explained, module.classes, title)
        for board in boards:
            board.experiment.add_figure("grad_cam", figure, trainer.global_step, close=False)


def even_sample(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Places of at most `count` photos, drawn by seed, as even over the classes as can be; sorted by class.

    Args:
        labels: int64 (N,).
        count: how many.
        seed: decides which.

    Returns:
        int64 (min(count, N),).
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turns = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turns[members] = np.arange(len(members))
    chosen = order[np.argsort(turns[order], kind="stable")][:count]
    return chosen[np.argsort(labels[chosen], kind="stable")]

"""Load the backbone's initial weights: torchvision's by name, or a state_dict from a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

from flowers_pl.core.errors import FlowersError

PREFIX = "features."  # of the backbone in torchvision's layout; the rest is the ImageNet classifier


def load_weights(backbone: nn.Sequential, weights: str) -> None:
    """Load weights into torchvision's MobileNetV2 `features`.

    Args:
        backbone: changed in place.
        weights: a name of `torchvision.models.MobileNet_V2_Weights`, or a path to a state_dict in
            torchvision's layout.

    Raises:
        FlowersError: there are no such weights, or they cannot be downloaded, read or used; the message names
            the keys that do not fit.

    >>> import tempfile
    >>> import torch
    >>> from torchvision.models import mobilenet_v2
    >>> from flowers_pl import FlowerNet
    >>> network, pretrained = FlowerNet(5), mobilenet_v2()
    >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
    ...     torch.save(pretrained.state_dict(), file.name)
    ...     load_weights(network.backbone, file.name)
    >>> torch.equal(network.backbone[0][0].weight, pretrained.features[0][0].weight)
    True
    """
    named = weights in MobileNet_V2_Weights.__members__
    state = _download(weights) if named else _read(Path(weights))
    state = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    if faults := _faults(backbone.state_dict(), state):
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise FlowersError(
            f"--model.weights: {weights!r} does not fit torchvision's mobilenet_v2:"
            f" {'; '.join(faults[:3])}{more}; give a state_dict of that network."
        )
    backbone.load_state_dict(state)


def check_weights(weights: str | None) -> None:
    """Check that `weights` is a name or a file, without reading the file.

    Raises:
        FlowersError: it is neither; the message says what may be given.
    """
    names = MobileNet_V2_Weights.__members__
    if weights is not None and weights not in names and not Path(weights).is_file():
        raise FlowersError(
            f"--model.weights: {weights!r} is neither a file nor a name of torchvision's; give a path to a"
            f" state_dict, one of the names {', '.join(names)}, or null."
        )


def _download(name: str) -> Mapping[str, Tensor]:
    chosen = MobileNet_V2_Weights[name]
    try:
        return chosen.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FlowersError(
            f"--model.weights: {name} could not be downloaded from {chosen.url} ({error}); give the path of a"
            " copy of that file, or null to train without pretrained weights."
        ) from error


def _read(file: Path) -> Mapping[str, Tensor]:
    check_weights(str(file))
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise FlowersError(
            f"--model.weights: {str(file)!r} was not written by torch.save, or is damaged; give a state_dict"
            " of torchvision's mobilenet_v2."
        ) from error
    if isinstance(state, Mapping) and "state_dict" in state:
        raise FlowersError(
            f"--model.weights: {str(file)!r} is a training checkpoint, not a state_dict; give pretrained"
            " weights, or resume that run with --ckpt_path."
        )
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FlowersError(
            f"--model.weights: {str(file)!r} holds no state_dict; write one with"
            " torch.save(model.state_dict(), path)."
        )
    return state


def _faults(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """List what does not fit, one phrase for each key."""
    faults = [f"{PREFIX}{key} is missing" for key in wanted if key not in given]
    faults += [f"{PREFIX}{key} is not known" for key in given if key not in wanted]
    return faults + [
        f"{PREFIX}{key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]

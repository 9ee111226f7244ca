"""Load the backbone's initial weights: torchvision's by name, or a state_dict from a file."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, WeightsEnum

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import sha256_of

PREFIX = "features."  # of the backbone in torchvision's layout; the rest is the ImageNet classifier
OPTION, NETWORK = "--model.weights", "torchvision's mobilenet_v2"


class NotDownloadedError(FlowersError):
    """Weights that are known by name are not on this machine, and cannot be downloaded."""


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
    if weights in MobileNet_V2_Weights.__members__:
        state = download(
            MobileNet_V2_Weights[weights],
            OPTION,
            "give the path of a copy of that file, or null to train without pretrained weights",
        )
    else:
        check_weights(weights)
        state = read_state(Path(weights), OPTION, NETWORK)
    state = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    check_state(backbone.state_dict(), state, OPTION, weights, NETWORK, PREFIX)
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


def read_tensors(file: Path) -> Any:
    """Read a file of torch.save; nothing in it is executed.

    Raises:
        pickle.UnpicklingError: it holds more than tensors and plain values.
        ValueError: it cannot be read, is damaged, or was not written by torch.save.
    """
    try:
        with file.open("rb") as stream:
            saved = stream.read(2).startswith((b"PK", b"\x80"))  # a zip archive, or a pickle
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if saved:
            raise
        raise ValueError("it was not written by torch.save") from error
    except OSError as error:
        raise ValueError(error.strerror or "it cannot be read") from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds for damaged files
        raise ValueError("it is damaged, or was not written by torch.save") from error


def download(weights: WeightsEnum, option: str, way_out: str) -> Mapping[str, Tensor]:
    """Read torchvision's weights from torch's cache; download what is missing or damaged there.

    Args:
        weights: torchvision's name for them.
        option: that asked for them, for the message.
        way_out: what to do where they cannot be downloaded, for the message.

    Raises:
        FlowersError: they cannot be downloaded.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    digest = re.search(r"-([0-9a-f]+)\.", file.name)
    assert digest is not None
    if sha256_of(file).startswith(digest[1]):
        return read_state(file, option, weights.name)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if not _is_writable(file.parent):
                file = Path(scratch, file.name)
            torch.hub.download_url_to_file(weights.url, str(file), digest[1])
            return read_state(file, option, weights.name)
    except (OSError, RuntimeError, HTTPException) as error:
        damaged = f"; delete {str(file)!r}, which is damaged" if file.exists() else ""
        reason = " ".join(str(error).split())
        raise NotDownloadedError(
            f"{option}: {weights.name} could not be downloaded from {weights.url} ({reason}){damaged};"
            f" {way_out}."
        ) from error


def _is_writable(folder: Path) -> bool:
    """Make a folder, and return whether files can be written to it."""
    if str(folder).startswith("~"):  # there is no home
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def read_state(file: Path, option: str, network: str) -> Mapping[str, Tensor]:
    """Read a state_dict from a file; nothing in it is executed.

    Args:
        file: written by torch.save.
        option: that named it, for the message.
        network: that it should be of, for the message.

    Raises:
        FlowersError: it cannot be read, or holds something else.
    """
    wanted = f"give a state_dict of {network}."
    try:
        state = read_tensors(file)
    except pickle.UnpicklingError as error:
        raise FlowersError(
            f"{option}: {str(file)!r} holds more than tensors, and loading that could run code; {wanted}"
        ) from error
    except ValueError as error:
        raise FlowersError(f"{option}: {str(file)!r} cannot be used: {error}; {wanted}") from error
    if isinstance(state, Mapping) and "state_dict" in state:
        raise FlowersError(
            f"{option}: {str(file)!r} is a training checkpoint, not a state_dict; give pretrained"
            " weights, or resume that run with --ckpt_path."
        )
    plain = isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )
    if not plain:
        raise FlowersError(
            f"{option}: {str(file)!r} holds no state_dict; write one with"
            " torch.save(model.state_dict(), path)."
        )
    return state


def check_state(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    option: str,
    name: str,
    network: str,
    prefix: str = "",
) -> None:
    """Check that a state_dict fits a network.

    Args:
        expected: the network's own.
        given: what is to be loaded.
        option: that named it, for the message.
        name: of the weights, for the message.
        network: for the message.
        prefix: of the keys, for the message.

    Raises:
        FlowersError: it does not; the message names the keys.
    """
    if faults := _faults(expected, given, prefix):
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise FlowersError(
            f"{option}: {name!r} does not fit {network}: {'; '.join(faults[:3])}{more}; give a state_dict of"
            " that network."
        )


def _faults(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], prefix: str) -> list[str]:
    """List what does not fit, one phrase for each key."""
    faults = [f"{prefix}{key} is missing" for key in expected if key not in given]
    faults += [f"{prefix}{key} is not known" for key in given if key not in expected]
    pairs = {key: (value, given[key]) for key, value in expected.items() if key in given}
    return faults + [f"{prefix}{key} {fault}" for key, pair in pairs.items() if (fault := _fault(*pair))]


def _fault(expected: Tensor, given: Tensor) -> str:
    """Say why a tensor cannot be loaded; empty if it can."""
    if given.shape != expected.shape:
        return f"is {tuple(given.shape)}, not {tuple(expected.shape)}"
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        return "is no plain tensor"
    if given.dtype.is_floating_point != expected.dtype.is_floating_point or given.dtype.is_complex:
        return f"is {str(given.dtype).removeprefix('torch.')}"
    return "" if given.double().isfinite().all() else "is not finite"

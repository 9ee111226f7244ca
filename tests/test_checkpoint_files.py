"""Checkpoints and weights: files that are whole, and files that are refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from flowers_pl.core.errors import FlowersError
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.network.weights import check_weights, load_weights
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, newest_best, read_checkpoint


class Malicious:
    """Runs code when it is unpickled by a loader that trusts."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.victim),)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoint = {"flowers_pl": {"classes": ["a"]}, "state_dict": {"w": torch.arange(3)}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "run" / "best.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "run" / "best.ckpt")["state_dict"]["w"], torch.arange(3))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["best.ckpt"]


def test_a_failed_write_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"flowers_pl": 1}, file)
    before = file.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FlowersError, match=r"last.ckpt' cannot be written .*No space left"):
        AtomicCheckpointIO().save_checkpoint({"flowers_pl": 2}, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"flowers_pl": Malicious(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    for name in ("evil.ckpt", "plain.ckpt"):
        with pytest.raises(FlowersError, match=rf"{name}' is refused"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def write_torn(file: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"flowers_pl": {}, "w": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize(
    "write",
    [
        write_torn,
        lambda file: file.touch(),
        lambda file: file.write_text("no checkpoint at all"),
        lambda file: file.write_bytes(b"PK\x03\x04 not a zip"),
        lambda file: torch.save({"state_dict": {}}, file),
        lambda file: torch.save([1, 2], file),
    ],
)
def test_torn_and_foreign_files_are_refused_in_one_sentence(
    tmp_path: Path, write: Callable[[Path], Any]
) -> None:
    write(tmp_path / "some.ckpt")
    with pytest.raises(FlowersError, match=r"^--ckpt_path: '.*some.ckpt' is ") as caught:
        read_checkpoint(tmp_path / "some.ckpt")
    assert "\n" not in str(caught.value)


def test_the_newest_best_is_found(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match=r"no best.ckpt below .*flowers_pl fit"):
        newest_best(tmp_path)
    for age, run in enumerate(["c", "a", "b"]):
        (tmp_path / run).mkdir()
        (tmp_path / run / "best.ckpt").touch()
        os.utime(tmp_path / run / "best.ckpt", (1000 + age, 1000 + age))
    assert newest_best(tmp_path) == tmp_path / "b" / "best.ckpt"


# ---------------------------------------------------------------- the weights that training starts from


def test_torchvisions_state_dict_fits(tmp_path: Path) -> None:
    source = mobilenet_v2()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = FlowerNet(3).backbone
    load_weights(backbone, str(tmp_path / "weights.pth"))
    for name, value in source.features.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.0.0.weight"), "features.0.0.weight is missing"),
        (
            lambda state: state.update({"features.99.weight": torch.zeros(1)}),
            "features.99.weight is not known",
        ),
        (
            lambda state: state.update({"features.0.1.bias": torch.zeros(7)}),
            r"features.0.1.bias is \(7,\), not \(32,\)",
        ),
        (lambda state: state.clear(), r"features.0.0.weight is missing; .* and 309 more"),
    ],
)
def test_weights_that_do_not_fit_say_which_keys(
    tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    state = mobilenet_v2().state_dict()
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(FlowersError, match=message) as caught:
        load_weights(FlowerNet(3).backbone, str(tmp_path / "weights.pth"))
    assert str(tmp_path / "weights.pth") in str(caught.value)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(nn.Linear(1, 1).state_dict()["weight"], tmp_path / "tensor.pth")
    torch.save({"features.0": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    for name, message in (
        ("text.pth", "torch.save"),
        ("tensor.pth", "no state_dict"),
        ("evil.pth", "torch.save"),
    ):
        with pytest.raises(FlowersError, match=message):
            load_weights(FlowerNet(3).backbone, str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(
        FlowersError, match="'IMAGENET' is neither a file nor a name of torchvision's; give a path"
    ):
        check_weights("IMAGENET")
    check_weights("IMAGENET1K_V2")
    check_weights(None)


def test_weights_that_cannot_be_downloaded_say_what_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(FlowersError, match=r"could not be downloaded .*no route to host.* or null"):
        load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")

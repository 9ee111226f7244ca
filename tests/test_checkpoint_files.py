"""Checkpoints and weights: files that are whole, and files that are refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from flowers_pl import FlowerClassifier, main
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
    checkpoint = torch.load(RUN / "best.ckpt", weights_only=True)
    checkpoint["state_dict"] = {"w": torch.arange(3)}
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


def save_with(file: Path, change: Callable[[torch.Tensor], Any]) -> None:
    """Write a state_dict one of whose weights is changed."""
    state = mobilenet_v2().state_dict()
    torch.save(state | {"features.0.0.weight": change(state["features.0.0.weight"])}, file)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda file: file.write_text("no weights"), "was not written by torch.save"),
    "empty": (lambda file: file.touch(), "cannot be used"),
    "html": (lambda file: file.write_text("<!DOCTYPE html>"), "was not written by torch.save"),
    "half": (lambda file: write_torn(file), "cannot be used"),
    "zip": (lambda file: file.write_bytes(b"PK\x03\x04 not a zip"), "cannot be used"),
    "tensor": (lambda file: torch.save(torch.zeros(3), file), "no state_dict"),
    "list": (lambda file: torch.save([1, 2], file), "no state_dict"),
    "numbered": (lambda file: torch.save({0: torch.zeros(3)}, file), "no state_dict"),
    "nested": (lambda file: torch.save({"model": {}}, file), "no state_dict"),
    "lightning": (lambda file: torch.save({"state_dict": {}}, file), "is a training checkpoint"),
    "module": (lambda file: torch.save(nn.Linear(1, 1), file), "could run code"),
    "pickle": (lambda file: file.write_bytes(pickle.dumps({"a": 1})), "could run code|cannot be used"),
    "other network": (lambda file: torch.save(nn.Linear(1, 1).state_dict(), file), "is missing"),
    "nan": (lambda file: save_with(file, lambda weight: weight * torch.nan), "is not finite"),
    "complex": (lambda file: save_with(file, lambda weight: weight + 1j), "is complex64"),
    "whole numbers": (lambda file: save_with(file, lambda weight: weight.int()), "is int32"),
    "sparse": (lambda file: save_with(file, lambda weight: weight.to_sparse()), "is no plain tensor"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_weights_of_a_wrong_kind_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    write, message = WRONG[kind]
    write(tmp_path / "weights.pth")
    with pytest.raises(FlowersError, match=message) as caught:
        load_weights(FlowerNet(3).backbone, str(tmp_path / "weights.pth"))
    assert str(caught.value).startswith(f"--model.weights: '{tmp_path / 'weights.pth'}' ")
    assert "\n" not in str(caught.value)


def test_weights_execute_nothing(tmp_path: Path) -> None:
    torch.save({"features.0": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(FlowersError, match="could run code"):
        load_weights(FlowerNet(3).backbone, str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_what_is_neither_a_file_nor_a_name_is_refused_at_once() -> None:
    with pytest.raises(
        FlowersError, match="'IMAGENET' is neither a file nor a name of torchvision's; give a path"
    ):
        check_weights("IMAGENET")
    check_weights("IMAGENET1K_V2")
    check_weights(None)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps IMAGENET1K_V1, which it fetches from a file here whose name has its digest."""
    source = tmp_path / "server" / "weights.pth"
    source.parent.mkdir()
    torch.save(mobilenet_v2().state_dict(), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    source = source.rename(source.with_name(f"mobilenet_v2-{digest}.pth"))
    member = MobileNet_V2_Weights.IMAGENET1K_V1
    monkeypatch.setattr(member, "_value_", replace(member.value, url=source.as_uri()))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints" / source.name


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.touch(),
    "html": lambda file: file.write_text("<html>Sign in to continue</html>"),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:100_000]),
    "other weights": lambda file: torch.save({}, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_download_is_fetched_again(cached: Path, damage: str) -> None:
    load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")
    whole = cached.read_bytes()
    cached.unlink() if damage == "empty" else None
    DAMAGES[damage](cached)
    load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")
    assert cached.read_bytes() == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_download_that_cannot_be_fetched_again_is_named(
    cached: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")
    cached.unlink() if damage == "empty" else None
    DAMAGES[damage](cached)
    before = cached.read_bytes()
    Path(MobileNet_V2_Weights.IMAGENET1K_V1.url.removeprefix("file://")).unlink()
    with pytest.raises(
        FlowersError, match=rf"could not be downloaded .*delete '{cached}', which is damaged"
    ) as caught:
        load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")
    assert "\n" not in str(caught.value)
    assert cached.read_bytes() == before


def test_a_whole_download_is_read_without_a_network(cached: Path) -> None:
    load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")
    Path(MobileNet_V2_Weights.IMAGENET1K_V1.url.removeprefix("file://")).unlink()
    load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")


def test_a_download_that_is_not_the_file_is_refused(cached: Path) -> None:
    """A proxy answers with its own page."""
    Path(MobileNet_V2_Weights.IMAGENET1K_V1.url.removeprefix("file://")).write_text("<html>Sign in</html>")
    with pytest.raises(FlowersError, match=r"could not be downloaded .*invalid hash"):
        load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")
    assert not cached.exists()


def test_a_cache_that_cannot_be_written_costs_only_the_cache(cached: Path) -> None:
    cached.parents[2].write_text("a file in the way")
    load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")


def test_weights_that_cannot_be_downloaded_say_what_else_to_do(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(FlowersError, match=r"could not be downloaded .*no route to host.* or null"):
        load_weights(FlowerNet(3).backbone, "IMAGENET1K_V1")


# ---------------------------------------------------------------- a checkpoint whose content was changed

RUN = Path(__file__).parent / "data" / "run-0.1.0"
CHANGES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "no weights": (("state_dict",), None),
    "weights as a list": (("state_dict",), []),
    "one weight of another shape": (("state_dict", "network.head.weight"), torch.zeros(3)),
    "one weight as text": (("state_dict", "network.head.weight"), "x"),
    "weights that are not finite": (("state_dict", "network.head.bias"), torch.full((5,), torch.nan)),
    "no settings": (("hyper_parameters",), 5),
    "a setting of another type": (("hyper_parameters", "dropout"), "much"),
    "an unknown setting": (("hyper_parameters", "colour"), "red"),
    "classes as text": (("flowers_pl", "classes"), "rose"),
    "no class": (("flowers_pl", "classes"), []),
    "other classes": (("flowers_pl", "classes"), ["a", "b"]),
    "size as text": (("flowers_pl", "image_size"), "32"),
    "negative size": (("flowers_pl", "image_size"), -1),
    "mean of text": (("flowers_pl", "mean"), ["a", "b", "c"]),
    "mean of two": (("flowers_pl", "mean"), [0.5, 0.5]),
    "stage as text": (("flowers_pl", "stage"), "second"),
    "an unknown stage": (("flowers_pl", "stage"), {"phase": 1}),
    "data as text": (("flowers_pl", "data"), "here"),
    "novelty as text": (("flowers_pl", "unlike"), "yes"),
    "novelty that does not fit": (("flowers_pl", "unlike", "axes"), torch.zeros(3)),
    "novelty without a limit": (("flowers_pl", "unlike", "limit"), None),
    "all of it": (("flowers_pl",), 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_was_changed_is_refused_in_one_sentence(tmp_path: Path, change: str) -> None:
    (*above, name), value = CHANGES[change]
    checkpoint = entries = torch.load(RUN / "best.ckpt", weights_only=True)
    for key in above:
        entries = entries[key]
    entries[name] = value
    torch.save(checkpoint, tmp_path / "best.ckpt")
    with pytest.raises(
        FlowersError, match=r"best.ckpt' was changed, or written by another version"
    ) as caught:
        FlowerClassifier.load(tmp_path / "best.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer_states", []),
        ("optimizer_states", [{"state": {}, "param_groups": 3}]),
        ("loops", {"fit_loop": 5}),
        ("lr_schedulers", None),
        ("callbacks", {"UnfreezeTopLayers": 5}),
        ("flowers_pl_average", {"steps": "x"}),
        ("pytorch-lightning_version", "x"),
    ],
)
def test_a_run_whose_checkpoint_was_changed_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(RUN, "checkpoints/run", ignore=shutil.ignore_patterns("final.*")))
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    checkpoint[name] = value
    torch.save(checkpoint, run / "last.ckpt")
    before = (run / "last.ckpt").read_bytes()
    more = ["--unfreeze.top_epochs", "4", "--data.root", str(RUN / "drawings")]
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), *more]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flowers_pl: ")]
    assert len(lines) == 1
    assert "last.ckpt' was changed, or written by another version" in lines[0]
    assert (run / "last.ckpt").read_bytes() == before

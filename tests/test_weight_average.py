"""The weight average: what is validated and kept is the average, what is trained does not know it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.training.checkpoint_callback import RunCheckpoints
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.stage import Stage
from flowers_pl.training.stage_callbacks import UnfreezeTopLayers
from flowers_pl.training.weight_average import AVERAGE, WeightAverage


class Steps(L.Callback):
    """Notes the trained weights of stage 2 after each step, and the validation losses."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FlowerClassifier)
        if pl_module.stage.number == 2:
            self.weights.append(
                {
                    name: weight.detach().clone()
                    for name, weight in pl_module.named_parameters()
                    if weight.requires_grad
                }
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["val_loss"]))


def fit(
    data: FlowersDataModule, folder: Path, decay: float, ckpt: Path | None = None, **options: Any
) -> tuple[Steps, FlowerClassifier]:
    """One epoch of the head, two of the top 30 layers, five batches each."""
    steps, model = Steps(), FlowerClassifier(weights=None, top_lr=1e-2)
    stages = UnfreezeTopLayers(30, head_epochs=1, top_epochs=options.pop("top", 2))
    callbacks = [stages, WeightAverage(decay), steps, RunCheckpoints(str(folder))]
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, callbacks=callbacks,
        plugins=[AtomicCheckpointIO()], max_epochs=-1, **options,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return steps, model


def average_of(steps: list[dict[str, Tensor]], name: str, decay: float) -> np.ndarray:
    """The oracle: the sum written out, in float64."""
    average = steps[0][name].double().numpy()
    for count, weights in enumerate(steps[1:], 1):
        kept = min(decay, (1 + count) / (10 + count))
        average = kept * average + (1 - kept) * weights[name].double().numpy()
    return average


@pytest.mark.parametrize("decay", [0.99, 0.3])  # the ramp, and the limit from step 3 on
def test_a_checkpoint_holds_the_average_and_beside_it_what_is_trained(
    data: FlowersDataModule, tmp_path: Path, decay: float
) -> None:
    steps, _ = fit(data, tmp_path, decay)
    last = read_checkpoint(tmp_path / "last.ckpt")
    assert len(steps.weights) == last[AVERAGE]["steps"] == 10
    assert last[AVERAGE]["trained"].keys() == steps.weights[-1].keys()
    assert len(steps.weights[-1]) == 34
    for name, trained in last[AVERAGE]["trained"].items():
        assert torch.equal(trained, steps.weights[-1][name])
        expected = average_of(steps.weights, name, decay)
        assert not np.allclose(expected, trained.numpy(), rtol=1e-5, atol=1e-7)
        assert np.allclose(expected, last["state_dict"][name].numpy(), rtol=1e-5, atol=1e-7)


def test_what_is_validated_is_the_average(data: FlowersDataModule, tmp_path: Path) -> None:
    steps, model = fit(data, tmp_path, 0.99)
    photos = data.val_photos.read(np.arange(len(data.val_photos)))
    labels = torch.from_numpy(data.val_photos.labels)
    with torch.inference_mode():
        judged = FlowerClassifier.load(tmp_path / "last.ckpt")
        assert float(F.cross_entropy(judged(photos), labels)) == pytest.approx(steps.losses[-1], rel=1e-4)
        assert float(F.cross_entropy(model.eval()(photos), labels)) == pytest.approx(
            min(steps.losses), rel=1e-4
        )


def test_training_does_not_know_of_the_average(data: FlowersDataModule, tmp_path: Path) -> None:
    with_average, _ = fit(data, tmp_path / "with", 0.99)
    without, _ = fit(data, tmp_path / "without", 0)
    for one, other in zip(with_average.weights, without.weights, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    last = read_checkpoint(tmp_path / "without" / "last.ckpt")
    assert AVERAGE not in last
    assert all(torch.equal(weight, last["state_dict"][name]) for name, weight in without.weights[-1].items())
    assert with_average.losses[0] == without.losses[0]  # of stage 1
    assert with_average.losses[1] != without.losses[1]


def test_only_steps_of_the_optimizer_count(data: FlowersDataModule, tmp_path: Path) -> None:
    fit(data, tmp_path, 0.99, accumulate_grad_batches=2)
    assert read_checkpoint(tmp_path / "last.ckpt")[AVERAGE]["steps"] == 6  # 2 epochs of 2 + 2 + 1 batches


def test_a_resumed_run_may_go_on_without_the_average(data: FlowersDataModule, tmp_path: Path) -> None:
    plain, _ = fit(data, tmp_path / "plain", 0)
    fit(data, tmp_path, 0.99, top=1)
    resumed, _ = fit(data, tmp_path, 0, tmp_path / "last.ckpt")
    last = read_checkpoint(tmp_path / "last.ckpt")
    assert AVERAGE not in last
    assert all(torch.equal(weight, last["state_dict"][name]) for name, weight in plain.weights[-1].items())
    assert len(resumed.weights) == 5


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_impossible_decay_is_named(decay: float) -> None:
    with pytest.raises(FlowersError, match=r"--average\.decay must be at least 0 and less than 1"):
        WeightAverage(decay)


def test_a_long_window_is_averaged_exactly(data: FlowersDataModule) -> None:
    """A random walk of 3,100 steps, past the ramp of 0.997, which takes 2,990: rounding has not added up."""
    model, average = FlowerClassifier(weights=None), WeightAverage(0.997)
    model.build(data.classes, 32)
    model.enter_stage(Stage(2, 2))
    model.network.head.requires_grad_(False)  # 2,560 weights are left
    name = "network.backbone.18.1.weight"
    walk, steps = torch.Generator().manual_seed(0), []
    trainer = SimpleNamespace(global_step=0)
    average.on_train_start(trainer, model)  # type: ignore[arg-type]
    weights = dict(model.named_parameters())[name]
    for _ in range(3100):
        with torch.no_grad():
            weights.add_(torch.randn(weights.shape, generator=walk), alpha=0.01)
        steps.append({name: weights.detach().clone()})
        trainer.global_step += 1
        average.on_train_batch_end(trainer, model, None, None, 0)  # type: ignore[arg-type]
    average._swap(dict(model.named_parameters()))
    found, expected = weights.detach().double().numpy(), average_of(steps, name, 0.997)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - steps[-1][name].numpy()).max() > 0.1

"""The two stages: what trains when, what never changes, and when a stage ends."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.network.fast_frozen import FrozenPart
from flowers_pl.network.fast_trained import TrainedPart
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.stage import Stage
from flowers_pl.training.stage_callbacks import StageEarlyStopping, UnfreezeTopLayers


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks],
        **options,
    )


def state(model: FlowerClassifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


class Watch(L.Callback):
    """Notes the state of the network and what is trainable at the start of each epoch and of the run."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.trainable: list[tuple[int, int]] = []
        self.optimizers: list[int] = []
        self.rates: list[dict[str, float]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FlowerClassifier)
        if batch_idx == 0:
            self.states.append(state(pl_module))
            weights = [weight for weight in pl_module.parameters() if weight.requires_grad]
            self.trainable.append((sum(weight.numel() for weight in weights), len(weights)))
            self.optimizers.append(id(trainer.optimizers[0]))
            groups = trainer.optimizers[0].param_groups
            self.rates.append({group["name"]: group["lr"] for group in groups})


def test_two_stages_train_what_they_should_and_nothing_else(data: FlowersDataModule) -> None:
    watch, model = Watch(), FlowerClassifier(weights=None)
    fit = trainer(UnfreezeTopLayers(30, head_epochs=2, top_epochs=2), watch)
    fit.fit(model, datamodule=data)
    assert watch.trainable == [(6_405, 2)] * 2 + [(1_532_805, 34)] * 2
    assert watch.rates == [{"head": 1e-3}] * 2 + [{"head": 1e-4, "top": 1e-4}] * 2
    assert (
        watch.optimizers[0] == watch.optimizers[1] != watch.optimizers[2] == watch.optimizers[3]
    )  # a fresh Adam
    start, _, boundary, _ = watch.states
    end = state(model)
    assert changed(start, boundary) == {"head.weight", "head.bias"}
    moved = changed(boundary, end)
    may_move = {name for name, weight in model.network.named_parameters() if weight.requires_grad}
    assert moved == may_move
    assert len(moved) == 34
    norms = [name for name in end if "running" in name or "num_batches" in name]
    assert len(norms) == 3 * 52
    assert not set(norms) & changed(start, end)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


class Scripted(FlowerClassifier):
    """Finds the validation losses that it is told, and notes the head at each."""

    def __init__(self, script: list[float]) -> None:
        super().__init__(weights=None)
        self.script = script
        self.heads: list[Tensor] = []

    def on_validation_epoch_end(self) -> None:
        loss = self.metrics_of("val").loss
        loss.total, loss.count = torch.tensor(self.script[self.current_epoch]), torch.tensor(1)
        self.heads.append(self.network.head.weight.detach().clone())
        super().on_validation_epoch_end()


class Stages(L.Callback):
    """Notes the stage of each epoch."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.heads: list[Tensor] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, FlowerClassifier)
        self.numbers.append(pl_module.stage.number)
        self.heads.append(pl_module.network.head.weight.detach().clone())


def run(
    data: FlowersDataModule, losses: list[float], patience: int, head: int, top: int
) -> tuple[Scripted, Stages]:
    model, stages = Scripted(losses), Stages()
    callbacks = [StageEarlyStopping(patience), UnfreezeTopLayers(2, head, top), stages]
    trainer(*callbacks, limit_train_batches=1).fit(model, datamodule=data)
    return model, stages


def test_early_stopping_ends_the_stage_and_then_the_run(data: FlowersDataModule) -> None:
    # stage 1: best in epoch 1, patience 2 is used up in epoch 3; stage 2 starts with a worse loss and has a
    # patience of its own
    _, stages = run(data, [5, 1, 2, 3, 9, 8, 8, 8.5, 0, 0], patience=2, head=8, top=8)
    assert stages.numbers == [1] * 4 + [2] * 4


def test_stage_two_starts_from_the_best_head(data: FlowersDataModule) -> None:
    model, stages = run(data, [3, 1, 2, 5, 5], patience=9, head=3, top=2)
    assert stages.numbers == [1, 1, 1, 2, 2]
    assert torch.equal(stages.heads[3], model.heads[1])
    assert not torch.equal(model.heads[1], model.heads[2])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_ends_the_run(data: FlowersDataModule, loss: float) -> None:
    with pytest.raises(FlowersError, match=r"validation loss is not finite in epoch 2 at step 2"):
        run(data, [2, loss, 1], patience=3, head=9, top=1)


@pytest.mark.parametrize(("head", "top", "numbers"), [(2, 0, [1, 1]), (0, 2, [2, 2]), (1, 1, [1, 2])])
def test_either_stage_may_be_left_out(
    data: FlowersDataModule, head: int, top: int, numbers: list[int]
) -> None:
    watch = Watch()
    stages = Stages()
    model = FlowerClassifier(weights=None)
    trainer(UnfreezeTopLayers(2, head, top), stages, watch, limit_train_batches=1).fit(model, datamodule=data)
    assert stages.numbers == numbers
    expected = {1: (6_405, 2), 2: (6_405 + 2_560, 4)}
    assert watch.trainable == [expected[number] for number in numbers]


def test_without_stages_early_stopping_ends_the_run(data: FlowersDataModule) -> None:
    stages = Stages()
    fit = trainer(StageEarlyStopping(2), stages, max_epochs=5, limit_train_batches=1)
    fit.fit(Scripted([1, 2, 3, 4, 5]), datamodule=data)
    assert stages.numbers == [1, 1, 1]


def test_fewer_epochs_than_the_stages_have_still_end_the_run(data: FlowersDataModule) -> None:
    stages = Stages()
    fit = trainer(UnfreezeTopLayers(2, 2, 2), stages, max_epochs=3, limit_train_batches=1)
    fit.fit(FlowerClassifier(weights=None), datamodule=data)
    assert stages.numbers == [1, 1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 0.5},
        {"val_check_interval": 2},
        {"val_check_interval": "00:00:01:00"},
        {"check_val_every_n_epoch": 2},
        {"limit_val_batches": 0},
        {"max_epochs": 0},
    ],
)
def test_epochs_that_stages_cannot_count_are_refused(
    data: FlowersDataModule, options: dict[str, Any]
) -> None:
    with pytest.raises(FlowersError, match=f"--trainer.{next(iter(options))}"):
        trainer(UnfreezeTopLayers(2, 1, 1), **options).fit(FlowerClassifier(weights=None), datamodule=data)


def test_the_log_says_what_each_stage_trains(
    data: FlowersDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flowers_pl"):
        run(data, [2, 1], patience=4, head=1, top=1)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Stage")]
    assert said == [
        "Stage 1 trains the head alone: 6,405 parameters in 2 tensors, Adam at 0.001, at most 1 epoch.",
        "Stage 2 trains the head and the top 2 layers: 8,965 parameters in 4 tensors, Adam at 0.0001, at"
        " most 1 epoch.",
    ]


@pytest.mark.parametrize(
    "options", [{"layers": 0}, {"layers": 155}, {"head_epochs": -1}, {"head_epochs": 0, "top_epochs": 0}]
)
def test_impossible_stages_are_named(options: dict[str, int]) -> None:
    with pytest.raises(FlowersError, match=f"--unfreeze.{next(iter(options))}"):
        UnfreezeTopLayers(**options)


def test_impossible_patience_is_named() -> None:
    with pytest.raises(FlowersError, match=r"--early_stopping\.patience"):
        StageEarlyStopping(0)


def test_only_a_flower_classifier_has_stages(data: FlowersDataModule) -> None:
    class Other(L.LightningModule):
        def training_step(self, batch: Batch, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    with pytest.raises(TypeError, match="not a Other"):
        trainer(UnfreezeTopLayers()).fit(Other(), datamodule=data)


# ---------------------------------------------------------------- the module by itself


def test_the_loss_of_all_ranks_has_the_gradient_of_the_whole_batch(data: FlowersDataModule) -> None:
    """DDP averages the ranks' gradients: for a batch of 5 on two ranks that must be the mean over five
    photos."""
    batch = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(batch, 0)
    model = FlowerClassifier(weights=None)
    model.build(data.classes, 32)
    model.double()
    part = {name: getattr(batch, name) for name in ("photos", "labels", "rows", "draws", "keys")}

    def gradient(ranks: list[slice]) -> Tensor:
        total: Tensor = torch.zeros(5, 1280, dtype=torch.float64)
        for rank in ranks:
            model._trainer = type("Ranks", (), {"world_size": len(ranks)})()  # type: ignore[assignment]
            model.zero_grad()
            some = Batch(**{name: value[rank] for name, value in part.items()}, total=5)
            model.training_step(some, 0).backward()
            assert model.network.head.weight.grad is not None
            total += model.network.head.weight.grad / len(ranks)
        return total

    whole = gradient([slice(0, 5)])
    torch.testing.assert_close(gradient([slice(0, 3), slice(3, 5)]), whole)
    torch.testing.assert_close(gradient([slice(0, 5), slice(5, 5)]), whole)  # a rank may have none


def gradient_of(model: FlowerClassifier, batch: Batch, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    assert model.network.head.weight.grad is not None
    return model.network.head.weight.grad.clone()


def test_weights_and_smoothing_change_what_is_trained_on_and_not_what_is_reported(
    data: FlowersDataModule,
) -> None:
    """The oracle is torch's own weighted mean, over both ranks' photos together."""
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    of_class = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64)
    weights = of_class[batch.labels] / of_class[batch.labels].mean()
    model = FlowerClassifier(weights=None, dropout=0)
    model.build(data.classes, 32)
    model.double()
    model._trainer = type("Two", (), {"world_size": 2})()  # type: ignore[assignment]
    parts = [
        batch._replace(
            photos=batch.photos[some], labels=batch.labels[some], keys=batch.keys[some],  # type: ignore[index]
            weights=weights[some], total=len(batch.labels),
        )
        for some in (slice(0, 3), slice(3, None))
    ]  # fmt: skip
    found = sum(gradient_of(model, part, model.training_step(part, 0)) for part in parts) / 2
    exact = F.cross_entropy(model(batch.photos), batch.labels, of_class)
    torch.testing.assert_close(found, gradient_of(model, batch, exact))
    plain = F.cross_entropy(model(batch.photos), batch.labels)
    torch.testing.assert_close(
        model.metrics_of("train").loss.compute().double(), plain.detach(), rtol=1e-5, atol=0
    )

    model.label_smoothing = 0.2
    smoothed = batch._replace(weights=None)
    found = gradient_of(model, smoothed, model.training_step(smoothed, 0)) / 2  # as if a second rank had none
    exact = F.cross_entropy(model(batch.photos), batch.labels, label_smoothing=0.2)
    torch.testing.assert_close(found, gradient_of(model, batch, exact))


def test_validation_figures_are_those_of_all_photos_at_once(data: FlowersDataModule) -> None:
    model = FlowerClassifier(weights=None)
    fit = trainer(UnfreezeTopLayers(30, 1, 1))
    fit.fit(model, datamodule=data)
    data.batch_size = 2  # validation batches of 4, 4 and 2
    fit.validate(model, datamodule=data, verbose=False)
    photos = data.val_photos.read(np.arange(len(data.val_photos)))
    labels = torch.from_numpy(data.val_photos.labels)
    with torch.no_grad():
        logits = model.eval()(photos)
    assert fit.callback_metrics["val_loss"].item() == pytest.approx(
        F.cross_entropy(logits, labels).item(), rel=1e-5
    )
    assert fit.callback_metrics["val_accuracy"].item() == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item()
    )


def test_the_first_head_depends_on_the_seed_alone() -> None:
    def head(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)
        model = FlowerClassifier(weights=None, seed=seed)
        model.build(["a", "b"], 32)
        return model.network.head.weight

    assert torch.equal(head(0, 1), head(0, 2))
    assert not torch.equal(head(0, 1), head(1, 1))


@pytest.mark.parametrize(
    "options",
    [{"dropout": 1.0}, {"head_lr": 0.0}, {"top_lr": -1.0}, {"head_lr": math.nan}, {"top_lr": math.inf}],
)
def test_impossible_settings_are_named(options: dict[str, float]) -> None:
    with pytest.raises(FlowersError, match=f"--model.{next(iter(options))}"):
        FlowerClassifier(**options)  # type: ignore[arg-type]


def test_real_weights_see_flowers(real_photos: Path, real_weights: Path) -> None:
    """ImageNet's backbone with its own classifier on top says daisy (985) for most daisies: normalisation and
    layout are right."""
    from torchvision.models import mobilenet_v2

    from flowers_pl.data.decoding import load_photo
    from flowers_pl.network.mobilenet import FlowerNet
    from flowers_pl.network.weights import load_weights

    network, reference = FlowerNet(1000).eval(), mobilenet_v2()
    load_weights(network.backbone, str(real_weights))
    reference.load_state_dict(torch.load(real_weights, weights_only=True))
    assert isinstance(reference.classifier[1], nn.Linear)
    network.head = reference.classifier[1]
    photos = torch.stack([load_photo(path, 160) for path in sorted((real_photos / "daisy").iterdir())[:60]])
    with torch.no_grad():
        assert (network(photos).argmax(1) == 985).float().mean() > 0.6


def test_a_stage_is_kept_in_plain_types() -> None:
    model = FlowerClassifier(weights=None)
    model.build(["a", "b"], 32)
    model._trainer = type("NoData", (), {"datamodule": None, "precision": "32-true"})()  # type: ignore[assignment]
    checkpoint: dict[str, Any] = {}
    model.enter_stage(Stage(2, "all", first_epoch=3, ended=True))
    model.on_save_checkpoint(checkpoint)
    other = FlowerClassifier(weights=None)
    other.on_load_checkpoint(checkpoint)
    assert other.stage == replace(model.stage, ended=False)  # what a resumed run's settings decide
    assert all(weight.requires_grad for weight in other.network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_rank_without_a_photo_has_gradients_of_zero(dtype: torch.dtype) -> None:
    """A short last batch may leave a rank none; the other ranks wait for its gradients all the same."""
    network = FlowerNet(5).to(torch.promote_types(dtype, torch.float32))
    network.train_top_layers(30)
    frozen = FrozenPart(network, dtype, 32)
    logits = TrainedPart(network, frozen)(frozen(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)))
    assert logits.shape == (0, 5)
    F.cross_entropy(logits, torch.zeros(0, dtype=torch.int64), reduction="sum").backward()
    gradients = [weight.grad for weight in network.parameters() if weight.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)

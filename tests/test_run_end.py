"""Runs that do not end as planned: none of them ends with code 0 and without a word."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from comparing import assert_same_runs
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from flowers_pl import FlowerClassifier, main
from flowers_pl.core.errors import FlowersError
from flowers_pl.data.batches import Batch
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_callback import MIDDLE, RunCheckpoints
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from flowers_pl.training.stage_callbacks import UnfreezeTopLayers

SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "batch_size": 8, "workers": 0},
    "model": {"weights": None},
    "unfreeze": {"head_epochs": 2, "top_epochs": 2},
    "export": "none",
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32", "enable_progress_bar": False},
}
WHOLE = Path("checkpoints/whole")  # 4 epochs of 5 steps
RUN = Path("checkpoints/run")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Path]:
    """A working folder with a run that nothing ended early."""
    folder = tmp_path_factory.mktemp("ends")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = SMALL | {"data": {**SMALL["data"], "root": str(drawings)}}
        Path("small.yaml").write_text(yaml.safe_dump(settings))
        assert fit("whole") == 0
        yield folder


@pytest.fixture(autouse=True)
def no_run(home: Path) -> None:
    shutil.rmtree(RUN, ignore_errors=True)


def fit(name: str, *args: str) -> int:
    return main(["fit", "--config", "small.yaml", "--run_name", name, *args])


def resume(*args: str) -> int:
    return main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), *args])


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flowers_pl: ")]
    assert len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------- a loss that is not finite


@pytest.mark.slow
def test_a_learning_rate_far_too_high_in_stage_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("run", "--model.head_lr", "1e38") == 1
    message = error(capsys)
    assert "training loss is not finite in epoch 1 at step 2" in message
    assert "--model.head_lr (now 1e+38)" in message
    assert "no checkpoint was saved" in message
    assert not list(RUN.glob("*.ckpt"))


@pytest.mark.parametrize("decay", ["0", "0.99"])
def test_a_learning_rate_far_too_high_in_stage_two(capsys: pytest.CaptureFixture[str], decay: str) -> None:
    assert fit("run", "--model.top_lr", "1e38", "--average.decay", decay) == 1
    message = error(capsys)
    assert "training loss is not finite in epoch 3 at step 12" in message
    assert "--model.top_lr (now 1e+38)" in message
    assert f"the last good checkpoint is {RUN / 'last.ckpt'}" in message
    assert read_checkpoint(RUN / "last.ckpt")["epoch"] == 1
    for name in ("best.ckpt", "last.ckpt"):
        weights = read_checkpoint(RUN / name)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights)


def test_a_learning_rate_far_too_high_with_a_save_at_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("run", "--model.head_lr", "1e38", "--save_every_n_steps", "1") == 1
    assert "trained weight is not finite in epoch 1 at step 1" in error(capsys)
    assert not list(RUN.glob("*.ckpt"))


def python_fit(
    data: FlowersDataModule, folder: Path, model: FlowerClassifier, *callbacks: L.Callback, **options: Any
) -> None:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, plugins=[AtomicCheckpointIO()], max_epochs=-1,
        callbacks=[UnfreezeTopLayers(30, 2, 2), *callbacks, RunCheckpoints(str(folder))], **options,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)


def test_weights_that_are_not_finite_are_not_saved(data: FlowersDataModule, tmp_path: Path) -> None:
    """The run's last step breaks the weights, and its loss was finite."""

    class Break(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            assert isinstance(pl_module, FlowerClassifier)
            if trainer.global_step == 2:
                torch.nn.init.constant_(pl_module.network.head.bias, torch.nan)

    with pytest.raises(FlowersError, match=r"trained weight is not finite in epoch 1 at step 2"):
        python_fit(data, tmp_path, FlowerClassifier(weights=None), Break(), max_steps=2)
    assert not list(tmp_path.glob("*.ckpt"))


def test_validation_photos_whose_loss_is_not_finite(data: FlowersDataModule, tmp_path: Path) -> None:
    class Broken(FlowerClassifier):
        def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
            logits = super().validation_step(batch, batch_idx)
            if self.current_epoch == 1:
                self.metrics_of("val").loss.total += torch.inf
            return logits

    with pytest.raises(FlowersError, match=r"validation loss is not finite in epoch 2 at step 10"):
        python_fit(data, tmp_path, Broken(weights=None))
    assert read_checkpoint(tmp_path / "last.ckpt")["epoch"] == 0


def test_clipped_gradients_train_too() -> None:
    """Lightning refuses to clip with the fused Adam."""
    assert fit("run", "--trainer.gradient_clip_val", "1", "--unfreeze.head_epochs", "1") == 0
    assert len(read_table(RUN / "metrics.csv")) == 3


# ---------------------------------------------------------------- a run that ends inside an epoch


@pytest.mark.parametrize(("steps", "best"), [(7, 5), (3, 3)])  # of five an epoch
def test_weights_that_are_validated_inside_an_epoch_are_the_best_only_if_no_others_are(
    data: FlowersDataModule, tmp_path: Path, steps: int, best: int
) -> None:
    """The run that goes on from there does not validate them, so it must not find them."""

    class Falling(FlowerClassifier):
        def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
            logits = super().validation_step(batch, batch_idx)
            self.metrics_of("val").loss.total /= 1 + self.global_step
            return logits

    class Stop(L.Callback):  # as Lightning's Timer, for --trainer.max_time
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop |= trainer.global_step == steps

    python_fit(data, tmp_path, Falling(weights=None), Stop())
    assert read_checkpoint(tmp_path / "best.ckpt")["global_step"] == best
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [pytest.param(2, marks=pytest.mark.release), 12],  # before validation, and in stage 2
)
def test_a_run_of_few_steps_is_saved_and_resumed_as_if_never_stopped(
    caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    with caplog.at_level("WARNING", "flowers_pl"):
        assert fit("run", "--trainer.max_steps", str(steps)) == 0
    assert f"inside epoch {steps // 5 + 1} at step {steps}" in caplog.text
    assert ("nothing was validated" in caplog.text) == (steps == 2)
    assert read_checkpoint(RUN / "last.ckpt")["global_step"] == steps
    assert resume("--trainer.max_steps", "-1") == 0
    assert_same_runs(WHOLE, RUN)


@pytest.mark.release
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_out_of_time_is_saved_and_resumed_as_if_never_stopped(
    caplog: pytest.LogCaptureFixture, accumulate: int
) -> None:
    """Time is up at the epoch's third batch; where two are accumulated, it ends after the fourth."""
    batches = 0

    def time_elapsed(self: Timer, *args: Any) -> float:
        return 100 if batches >= 8 else 0

    def count(self: Any, *args: Any) -> None:
        nonlocal batches
        batches += 1

    options = ["--trainer.accumulate_grad_batches", str(accumulate)]
    whole = WHOLE if accumulate == 1 else Path("checkpoints/accumulated")
    if accumulate == 2:
        assert fit(whole.name, *options) == 0
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING", "flowers_pl"):
        patch.setattr(Timer, "time_elapsed", time_elapsed)
        patch.setattr(RunCheckpoints, "on_train_batch_start", count, raising=False)
        assert fit("run", "--trainer.max_time", "00:00:00:09", *options) == 0
    assert "inside epoch 2" in caplog.text
    assert batches == (8 if accumulate == 1 else 9)
    assert MIDDLE in read_checkpoint(RUN / "last.ckpt")
    assert resume("--trainer.max_time", "null") == 0
    assert_same_runs(whole, RUN)


@pytest.mark.parametrize(
    "option",
    [
        ("--trainer.limit_train_batches", "0"),
        ("--trainer.max_time", "00:00:00:00"),
        ("--trainer.max_steps", "0"),
    ],
)
def test_a_run_without_a_step_is_an_error_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert fit("run", *option) == 1
    assert "Nothing was trained" in error(capsys)
    assert not RUN.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [("--trainer.max_steps", "10"), pytest.param(("--trainer.max_epochs", "2"), marks=pytest.mark.release)],
)
def test_a_run_resumed_at_its_limit_says_so_and_reports_its_best_weights(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], limit: tuple[str, str]
) -> None:
    assert fit("run", *limit, "--model.head_lr", "0.5") == 0
    losses = [float(row["val_loss"]) for row in read_table(RUN / "metrics.csv")]
    assert losses[0] < losses[1]
    reported = capsys.readouterr().out
    assert f"{losses[0]:.4f}" in reported
    with caplog.at_level("WARNING", "flowers_pl"):
        assert resume("--trainer.enable_progress_bar", "true") == 0
    assert "Nothing was left to train" in caplog.text
    assert f"{losses[0]:.4f}" in capsys.readouterr().out


# ---------------------------------------------------------------- settings that were damaged


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:300]), "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_text("a: ["), "is damaged"),
        (lambda file: file.write_bytes(b"\xff\x00"), "is damaged"),
        (lambda file: replace(file, "head_epochs: 2", "head_epochs: few"), "must be a whole number, not few"),
        (lambda file: replace(file, "head_epochs", "heads"), "unfreeze.heads is no setting"),
    ],
)
def test_a_run_whose_config_was_damaged_is_not_resumed(
    capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(WHOLE, RUN)
    damage(RUN / "config.yaml")
    assert resume() == 1
    said = error(capsys)
    assert message in said
    assert "config.yaml" in said

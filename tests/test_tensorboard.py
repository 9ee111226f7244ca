"""runs/tensorboard.py: what TensorBoard shows is what was predicted, and training is not affected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.evaluation.figures import new_figure
from flowers_pl.runs import tensorboard
from flowers_pl.runs.tensorboard import LogGradCam, LogPredictions
from flowers_pl.training.classifier import FlowerClassifier

Fitted = tuple[FlowerClassifier, EventAccumulator, L.Trainer]


def fitted(
    drawings: Path, folder: Path, callbacks: list[L.Callback], batch: int = 16, **options: Any
) -> Fitted:
    torch.manual_seed(3)
    board = TensorBoardLogger(folder, name="", version="")
    data = FlowersDataModule(root=str(drawings), image_size=32, batch_size=batch, workers=0)
    module = FlowerClassifier(weights=None, head_lr=0.1)
    trainer = L.Trainer(**{
        "max_epochs": 2, "logger": board, "callbacks": callbacks, "accelerator": "cpu", "devices": 1,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "use_distributed_sampler": False, **options,
    })  # fmt: skip
    trainer.fit(module, datamodule=data)
    board.experiment.flush()
    return module, EventAccumulator(board.log_dir, {"images": 0, "tensors": 0}).Reload(), trainer


def steps(events: EventAccumulator, name: str) -> list[int]:
    return [one.step for one in events.Images(name)] if name in events.Tags()["images"] else []


@pytest.mark.usefixtures("data")  # decodes the drawings, which draws from the global generator, beforehand
def test_training_does_not_mind_being_watched(drawings: Path, tmp_path: Path) -> None:
    plain, empty, _ = fitted(drawings, tmp_path / "plain", [])
    after = torch.get_rng_state()
    callbacks = [LogGradCam(photos=4, every_n_epochs=1), LogPredictions()]
    watched, events, _ = fitted(drawings, tmp_path / "watched", callbacks)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in plain.state_dict().items())
    modes = [[module.training for module in one.modules()] for one in (plain, watched)]
    assert modes[0] == modes[1]
    assert empty.Tags()["images"] == []
    assert len(events.Scalars("val_loss")) == 2
    assert steps(events, "val/grad_cam") == [3, 6]
    assert steps(events, "val/confusion_matrix") == [3]


def test_heat_maps_wait_for_some_epochs(drawings: Path, tmp_path: Path) -> None:
    _, events, _ = fitted(drawings, tmp_path / "two", [LogGradCam(photos=2, every_n_epochs=2)])
    assert len(steps(events, "val/grad_cam")) == 1
    _, events, _ = fitted(drawings, tmp_path / "never", [LogGradCam(every_n_epochs=0)])
    assert steps(events, "val/grad_cam") == []
    with pytest.raises(FlowersError, match=r"at least 1 and .* at least 0, not 0 and -1"):
        LogGradCam(photos=0, every_n_epochs=-1)


def test_training_and_validation_stand_on_one_chart(drawings: Path, tmp_path: Path) -> None:
    _, events, _ = fitted(drawings, tmp_path, [LogPredictions()], max_epochs=1)
    value = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    charts = Layout.FromString(value).category[0].chart
    assert [chart.title for chart in charts] == ["loss", "accuracy", "f1"]
    shown = {tag.strip("^$") for chart in charts for tag in chart.multiline.tag}
    assert shown <= set(events.Tags()["scalars"])


def test_a_matrix_is_drawn_as_training_goes(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Drawn(monkeypatch)
    options = {"max_epochs": 6, "limit_train_batches": 1}
    _, events, _ = fitted(drawings, tmp_path, [LogPredictions()], **options)
    assert steps(events, "val/confusion_matrix") == [1, 5]  # after the first epoch, and the fifth


class Drawn:
    """Stands in for the drawing, and keeps what should be drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.matrices: list[np.ndarray] = []
        self.titles: list[str] = []
        self.mistakes: list[tuple[Any, ...]] = []
        monkeypatch.setattr(tensorboard, "confusion_matrix", self._matrix)
        monkeypatch.setattr(tensorboard, "misclassified", self._misclassified)

    def _matrix(self, matrix: np.ndarray, _: list[str], title: str) -> Figure:
        self.matrices.append(matrix)
        self.titles.append(title)
        return new_figure(1, 1)

    def _misclassified(self, *given: Any, total: int) -> Figure:
        self.mistakes.append((*given, total))
        return new_figure(1, 1)


def test_the_figures_show_what_the_model_predicts(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(monkeypatch)
    model, _, trainer = fitted(drawings, tmp_path, [LogPredictions(photos=3)], max_epochs=1)
    trainer.validate(model, datamodule=trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    data: FlowersDataModule = trainer.datamodule  # type: ignore[attr-defined]
    labels, photos = data.val_photos.labels, data.val_photos.read(np.arange(len(data.val_photos)))
    with torch.no_grad():
        shares = model.eval()(photos).softmax(1).numpy()
    expected = np.zeros((5, 5), int)
    for truth, predicted in zip(labels, shares.argmax(1), strict=True):
        expected[truth, predicted] += 1
    assert 0 < expected.trace() < len(labels), "a test of mistakes needs some"
    assert drawn.titles == ["Epoch 1", "Best epoch"]
    assert all(np.array_equal(matrix, expected) for matrix in drawn.matrices)
    wrong = [row for row in range(len(labels)) if shares[row].argmax() != labels[row]]
    first = sorted(wrong, key=lambda row: -shares[row].max())[:3]
    ((pixels, truths, predictions, probabilities, total),) = drawn.mistakes
    assert truths == [model.classes[labels[row]] for row in first]
    assert predictions == [model.classes[shares[row].argmax()] for row in first]
    assert probabilities == pytest.approx([shares[row].max() for row in first], abs=1e-5)
    assert total == len(wrong)
    for shown, row in zip(pixels, first, strict=True):
        assert np.array_equal(shown, photos[row].permute(1, 2, 0).numpy())


def test_only_what_was_predicted_counts(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(monkeypatch)
    fitted(drawings, tmp_path, [LogPredictions()], batch=2, max_epochs=1, limit_val_batches=2)
    (matrix,) = drawn.matrices
    assert matrix.sum(1).tolist() == [2, 2, 2, 2, 0]  # two batches of four, of ten in the order of classes

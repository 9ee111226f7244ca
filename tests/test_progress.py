"""progress.py: what a run says of how far it is."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.runs.progress import AboveBars, EpochBar, EpochLines, bars_for
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.stage_callbacks import UnfreezeTopLayers


class Look(L.Callback):
    """Notes what the bar says at the start of each epoch."""

    def __init__(self, bar: EpochBar) -> None:
        self.bar, self.said = bar, list[str]()

    def on_train_batch_start(self, *_: Any) -> None:
        self.said.append(self.bar.train_progress_bar.desc)


def test_epochs_count_from_one(
    data: FlowersDataModule, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = EpochBar()
    look = Look(bar)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=1, limit_train_batches=1, max_epochs=-1,
        callbacks=[UnfreezeTopLayers(2, 1, 1), EpochLines(), bar, look],
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "flowers_pl"):
        trainer.fit(FlowerClassifier(weights=None), datamodule=data)
    assert [said.removesuffix(": ") for said in look.said] == ["Epoch 1", "Epoch 2"]
    lines = [line for line in caplog.messages if line.startswith("Epoch")]
    assert [line.partition(":")[0] for line in lines] == ["Epoch 1", "Epoch 2"]
    seen = trainer.callback_metrics
    assert lines[-1] == (
        f"Epoch 2: loss {seen['train_loss']:.4f}, accuracy {seen['train_accuracy']:.4f} in training;"
        f" loss {seen['val_loss']:.4f}, accuracy {seen['val_accuracy']:.4f} in validation."
    )
    assert "v_num" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("terminal", "wanted", "own", "shown", "added"),
    [
        (True, None, False, True, [EpochBar]),
        (False, None, False, False, []),
        (False, True, False, True, [EpochBar]),
        (True, False, False, False, []),
        (True, None, True, True, []),
        (False, None, True, True, []),
    ],
)
def test_bars_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    wanted: bool | None,
    own: bool,
    shown: bool,
    added: list[type],
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    found = bars_for(wanted, [TQDMProgressBar()] if own else [])
    assert found[0] is shown
    assert [type(one) for one in found[1]] == added


def test_a_line_is_written_above_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    with tqdm(total=3, file=screen, mininterval=0) as bar:
        bar.update()
        AboveBars().emit(logging.LogRecord("flowers_pl", logging.INFO, "", 0, "said %d", (7,), None))
    lines = screen.getvalue().replace("\r", "\n").split("\n")
    assert "said 7" in [line.strip() for line in lines]

"""Metrics are those of all photos at once, in whatever batches they come; scikit-learn is the oracle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

from flowers_pl.training.metrics import MeanLoss, SideMetrics


def test_the_mean_loss_counts_photos_not_batches() -> None:
    loss = MeanLoss()
    loss.update(torch.tensor(8.0), 8)
    loss.update(torch.tensor(30.0), 3)
    assert loss.compute().item() == pytest.approx(38 / 11)


def peak_memory() -> int:
    """Bytes that this process has had at most since "5" was written to /proc/self/clear_refs."""
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kibibytes) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a peak be forgotten")
def test_many_classes_are_counted_without_comparing_all_pairs_of_them() -> None:
    labels = torch.arange(4096) % 1000
    metrics = SideMetrics("val", 1000)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        metrics.update(torch.eye(1000)[labels.roll(1000)], labels)
        assert metrics.compute()["val_accuracy"] == pytest.approx(3096 / 4096)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert peak_memory() - before < 2**30  # else 37 GB


@pytest.mark.parametrize("together", [1, 2, 64])
def test_figures_do_not_depend_on_the_batches(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowers_pl.training.metrics.NUM_BATCHES", together)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(50) % 4
    logits = torch.randn(50, 5, generator=generator) + torch.eye(5)[labels]  # the fifth class has no photo
    metrics = SideMetrics("val", 5)
    assert not metrics.updated
    for part in (slice(0, 7), slice(7, 7), slice(7, 48), slice(48, 50)):
        metrics.update(logits[part], labels[part])
    assert metrics.updated
    guessed = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, guessed, average="macro")
    expected = {
        "val_loss": log_loss(labels, logits.double().softmax(1), labels=range(5)),
        "val_accuracy": accuracy_score(labels, guessed),
        "val_precision": precision,
        "val_recall": recall,
        "val_f1": f1,
    }
    found = metrics.compute()
    assert next(iter(found)) == "val_loss"
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)
    metrics.update(logits, labels)
    metrics.reset()
    assert not metrics.updated
    metrics.update(logits[:1], labels[:1])  # nothing is left of before
    assert metrics.compute()["val_accuracy"] == float(guessed[0] == labels[0])

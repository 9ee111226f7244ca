"""The novelty score, its limit, and its way into a checkpoint and out again."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]
from torch.nn import functional as F

from flowers_pl.cli.app import main
from flowers_pl.core.names import KEY
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import load_photo
from flowers_pl.evaluation.predictions import Row, prediction_table
from flowers_pl.network.novelty import NUM_AXES, Novelty
from flowers_pl.network.weights import load_weights
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.novelty_callback import fit_novelty


def features(photos: int, seed: int, plane: int = 8, noise: float = 0.1) -> torch.Tensor:
    """Float (photos, 100), near a plane through a point that is not the origin."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(plane + 1, 100, generator=torch.Generator().manual_seed(0))
    inside = torch.randn(photos, plane, generator=draw) @ base[1:]
    return 10 * base[0] + inside + noise * torch.randn(photos, 100, generator=draw)


def test_the_score_is_the_residual_of_scikit_learns_pca() -> None:
    training, held_out, others = features(300, 1), features(200, 2), features(50, 3, noise=2.0)
    found = Novelty.fit(training, held_out)
    pca = PCA(NUM_AXES).fit(F.normalize(training.double()).numpy())

    def residual(some: torch.Tensor) -> np.ndarray:
        units = F.normalize(some.double()).numpy()
        return np.asarray(np.linalg.norm(units - pca.inverse_transform(pca.transform(units)), axis=1))

    limit = np.quantile(residual(held_out), 0.95)
    for some in (training, held_out, others):
        assert found(some).numpy() == pytest.approx(residual(some) / limit, rel=1e-3)
    assert float((found(held_out) > 1).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert (found(others) > 1).all()
    assert torch.equal(found(3 * others), found(others)) or torch.allclose(found(3 * others), found(others))


@pytest.mark.parametrize("photos", [1, 2, 5])
def test_a_handful_of_photos_will_do(photos: int) -> None:
    found = Novelty.fit(features(photos, 1), features(1, 2))
    assert found(features(7, 3)).isfinite().all()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Path]:
    """A working folder with a finished run."""
    folder = tmp_path_factory.mktemp("unlike")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(fit(drawings, "first")) == 0
        yield folder


def fit(drawings: Path, run: str) -> list[str]:
    return [
        "fit", "--data.root", str(drawings), "--data.image_size", "32", "--data.workers", "0",
        "--data.batch_size", "8", "--model.weights", "null", "--export", "none",
        "--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "1", "--trainer.accelerator", "cpu",
        "--trainer.devices", "1", "--trainer.precision", "32-true", "--run_name", run,
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_best_checkpoint_carries_the_score_of_its_own_weights(home: Path, drawings: Path) -> None:
    ckpt = home / "checkpoints" / "first" / "best.ckpt"
    model = FlowerClassifier.load(ckpt)
    data = FlowersDataModule(root=str(drawings), image_size=32, workers=0)
    data.setup("fit")
    kept = model.novelty
    assert kept is not None
    again = fit_novelty(model, data)
    assert again is not None
    assert kept.limit == pytest.approx(again.limit, rel=1e-3)
    assert torch.allclose(kept.mean, again.mean, atol=1e-4)
    flagged = [model.unlikeness(drawings / photo.path) > 1 for photo in data.reported_photos]  # type: ignore[operator]
    assert sum(flagged) <= 1  # of ten
    assert read_checkpoint(home / "checkpoints" / "first" / "last.ckpt")[KEY]["unlike"] is None


def test_the_score_is_reproduced_bit_for_bit(home: Path, drawings: Path) -> None:
    assert main(fit(drawings, "again")) == 0
    first, again = (
        read_checkpoint(f"checkpoints/{run}/best.ckpt")[KEY]["unlike"] for run in ("first", "again")
    )
    assert first["limit"] == again["limit"]
    assert torch.equal(first["mean"], again["mean"])
    assert torch.equal(first["axes"], again["axes"])
    shutil.rmtree(home / "checkpoints" / "again")


def predicted(*args: str) -> list[dict[str, str]]:
    assert (
        main(["predict", *args, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
        == 0
    )
    ckpt = (
        Path(args[args.index("--ckpt_path") + 1])
        if "--ckpt_path" in args
        else Path("checkpoints/first/best.ckpt")
    )
    with open(ckpt.parent / "predictions.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predict_has_the_score_and_the_flag(home: Path, drawings: Path) -> None:
    rows = predicted("--data.predict_root", str(drawings / "rose"))
    assert len(rows) == 10
    model = FlowerClassifier.load("checkpoints/first/best.ckpt")
    for row in rows:
        score = model.unlikeness(drawings / "rose" / row["path"])
        assert score is not None
        assert float(row["unlike"]) == pytest.approx(score, abs=2e-3)
        assert row["unknown"] == ("yes" if float(row["unlike"]) > 1 else "no")


def test_a_checkpoint_from_before_has_no_score(home: Path, drawings: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint("checkpoints/first/best.ckpt")
    del checkpoint[KEY]["unlike"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "old.ckpt")
    assert (
        FlowerClassifier.load(tmp_path / "old.ckpt").unlikeness(drawings / "rose" / "rose_0000.png") is None
    )
    rows = predicted("--data.predict_root", str(drawings / "rose"), "--ckpt_path", str(tmp_path / "old.ckpt"))
    assert not {"unlike", "unknown"} & set(rows[0])


def test_the_screen_says_what_is_probably_none_of_the_classes() -> None:
    lines = list(prediction_table([Row("a", "rose", (0.9,), "", 0.8), Row("b", "rose", (0.9,), "", 1.25)]))
    assert "none of the classes" not in lines[0]
    assert "probably none of the classes (unlike 1.250)" in lines[1]
    assert not Row("c", "", (), "empty file").unknown
    assert not Row("d", "rose", (0.9,), "", math.nan).unknown


def strange(kind: str, number: int) -> torch.Tensor:
    """A picture of no flower, uint8 (3, 160, 160): noise, stripes, or lines of dark bars as in a text."""
    draw = np.random.default_rng([number, len(kind)])
    if kind == "noise":
        picture = draw.integers(0, 256, (160, 160, 3))
    elif kind == "stripes":
        wave = np.sin(np.arange(160) * draw.uniform(0.1, 1))[:, None, None]
        picture = np.broadcast_to(127 + 100 * wave * draw.uniform(-1, 1, 3), (160, 160, 3))
    else:
        bars = np.repeat(np.repeat(draw.random((16, 40)) < 0.7, 6, 0), 4, 1).reshape(96, 160)
        picture = np.full((160, 160, 3), 245)
        picture[32:128][bars & (np.arange(96) % 6 < 4)[:, None]] = 40
    return torch.from_numpy(np.ascontiguousarray(picture).astype(np.uint8)).permute(2, 0, 1)


@pytest.mark.release
def test_real_flowers_are_told_from_what_is_none(real_photos: Path, real_weights: Path) -> None:
    """On ImageNet's features alone: 95 % of other photos of flowers are kept, nearly all else is flagged."""
    model = FlowerClassifier(weights=None)
    model.build([folder.name for folder in sorted(real_photos.iterdir())], 160)
    load_weights(model.network.backbone, str(real_weights))
    files = sorted(real_photos.glob("*/*"))

    @torch.inference_mode()
    def pooled(photos: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([model.network.features(some) for some in torch.stack(photos).split(50)])

    training, limit, unseen = (
        pooled([load_photo(file, 160) for file in files[start::17]]) for start in (0, 5, 11)
    )
    unlike = Novelty.fit(training, limit)
    flowers = unlike(unseen)
    assert float((flowers > 1).float().mean()) < 0.12  # 0.05 but for chance, at 203 photos
    for kind in ("noise", "stripes", "text"):
        others = unlike(pooled([strange(kind, number) for number in range(50)]))
        truth = np.repeat([0, 1], [len(flowers), len(others)])
        assert roc_auc_score(truth, torch.cat([flowers, others]).numpy()) > 0.98, kind
        assert float((others > 1).float().mean()) > 0.9, kind

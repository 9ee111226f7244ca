"""The strong recipe's rates: by depth, weight decay, warm-up, cosine, clipping; through stops and resumes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from comparing import assert_same_runs, differences
from strong import ALL_ON
from test_resume import sends
from test_stages import Scripted, Stages, changed, state, trainer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import KEY
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.network.fast_layers import Cut, conv_norms, find_cut
from flowers_pl.network.mobilenet import FlowerNet, TopLayers
from flowers_pl.runs.tables import read_table
from flowers_pl.training.checkpoint_callback import RunCheckpoints
from flowers_pl.training.checkpoint_files import AtomicCheckpointIO, read_checkpoint
from flowers_pl.training.classifier import FlowerClassifier
from flowers_pl.training.optimizer import Rates, make_optimizer, parameter_groups
from flowers_pl.training.schedule import Schedule, rate_factor
from flowers_pl.training.stage import Stage
from flowers_pl.training.stage_callbacks import StageEarlyStopping, UnfreezeTopLayers

ROOT = Path(__file__).parents[1]
STRONG = ROOT / "configs" / "strong.yaml"


# ---------------------------------------------------------------- the schedule


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(("steps", "warming"), [(40, 0), (40, 4), (37, 9), (2, 0)])
def test_factors_are_those_of_torch(schedule: Schedule, steps: int, warming: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    after: LRScheduler = (
        CosineAnnealingLR(optimizer, steps - warming)
        if schedule == "cosine"
        else ConstantLR(optimizer, factor=1)
    )
    oracle = after
    if warming:
        rising = LinearLR(optimizer, 1 / warming, 1.0, warming - 1)
        oracle = SequentialLR(optimizer, [rising, after], [warming])
    share = (warming + 0.5) / steps if warming else 0.0
    for step in range(steps):
        assert rate_factor(step, steps, share, schedule) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    assert schedule == "constant" or optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


# ---------------------------------------------------------------- groups


def unfrozen(layers: TopLayers) -> FlowerNet:
    network = FlowerNet(5)
    network.train_top_layers(layers)
    return network


def test_rates_fall_by_depth_and_only_matrices_decay() -> None:
    """The expectation is written by hand: blocks by their numbers in torchvision's names."""
    network = unfrozen(127)
    rates = Rates(top=4e-4, top_head=1.2e-3, layer_decay=0.75, weight_decay=0.02)
    expected = {
        "head": (range(0), 1.2e-3),
        "blocks_16_18": (range(16, 19), 4e-4),
        "blocks_13_15": (range(13, 16), 3e-4),
        "blocks_10_12": (range(10, 13), 2.25e-4),
        "blocks_07_09": (range(7, 10), 1.6875e-4),
        "blocks_04_06": (range(4, 7), 1.265625e-4),
    }
    groups = parameter_groups(network, Stage(2, 127), rates)
    assert {group["name"].removesuffix("_plain") for group in groups} == expected.keys()
    name_of = {id(weight): name for name, weight in network.named_parameters()}
    seen = []
    for group in groups:
        blocks, rate = expected[group["name"].removesuffix("_plain")]
        assert group["lr"] == pytest.approx(rate, rel=1e-12)
        for weight in group["params"]:
            part, _, rest = name_of[id(weight)].partition(".")
            assert int(rest.partition(".")[0]) in blocks if part == "backbone" else part == group["name"][:4]
            assert group["weight_decay"] == (0.02 if weight.ndim in (2, 4) else 0)
        seen += [name_of[id(weight)] for weight in group["params"]]
    assert sorted(seen) == sorted(name for name, one in network.named_parameters() if one.requires_grad)


def test_a_step_without_gradients_shrinks_matrices_and_leaves_biases_and_norms() -> None:
    network = unfrozen("all")
    groups = parameter_groups(network, Stage(2, "all"), Rates(top=0.1, weight_decay=0.5))
    optimizer = make_optimizer(groups, clips=False)
    assert type(optimizer) is torch.optim.AdamW
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in network.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, before[name]), name
        else:
            torch.testing.assert_close(weight.detach(), before[name] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("number", "layers"), [(1, 0), (2, 30)])
def test_the_default_optimizer_is_that_of_0_1_0(number: int, layers: int) -> None:
    """Its state and its groups, written out as 0.1.0 made them."""
    network = unfrozen(layers)
    stage = Stage(number, layers)
    found = make_optimizer(parameter_groups(network, stage, Rates()), clips=False)
    parts = {"head": network.head, "top": network.backbone}
    groups: list[dict[str, Any]] = [
        {"name": name, "params": [weight for weight in part.parameters() if weight.requires_grad]}
        for name, part in parts.items()
    ]
    before = torch.optim.Adam(
        [one for one in groups if one["params"]], {1: 1e-3, 2: 1e-4}[number], fused=True
    )
    assert type(found) is torch.optim.Adam
    for weight in network.parameters():
        if weight.requires_grad:
            weight.grad = torch.ones_like(weight)
    found.step()
    before.step()
    assert not differences(before.state_dict(), found.state_dict(), "")
    of_both = zip(before.param_groups, found.param_groups, strict=True)
    assert all(a is b for one, other in of_both for a, b in zip(one["params"], other["params"], strict=True))


def test_fused_kernels_are_not_used_where_gradients_are_clipped() -> None:
    groups = parameter_groups(unfrozen(2), Stage(2, 2), Rates(weight_decay=0.1))
    assert make_optimizer(groups, clips=False).defaults["fused"] is True
    groups = parameter_groups(unfrozen(2), Stage(2, 2), Rates(weight_decay=0.1))
    assert not make_optimizer(groups, clips=True).defaults["fused"]


@pytest.mark.parametrize(
    "options",
    [
        {"top_head_lr": 0.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
        {"weight_decay": -0.1},
        {"warmup": 1.0},
        {"warmup": -0.1},
    ],
)
def test_impossible_settings_are_named(options: dict[str, float]) -> None:
    with pytest.raises(FlowersError, match=f"--model.{next(iter(options))} must"):
        FlowerClassifier(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- a run


class Steps(L.Callback):
    """Notes the learning rates of each step of the optimizer."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 5), (2, 3)])
def test_each_stage_warms_up_and_falls_over_its_own_steps(
    data: FlowersDataModule, accumulated: int, steps: int
) -> None:
    """Five batches an epoch; two by two they are three steps."""
    noted, model = Steps(), FlowerClassifier(**ALL_ON["model"])
    stages = UnfreezeTopLayers(127, head_epochs=1, top_epochs=2)
    trainer(stages, noted, accumulate_grad_batches=accumulated).fit(model, datamodule=data)
    head = [rates["head"] for rates in noted.rates]
    expected = [1e-3 * rate_factor(step, steps, 0.3, "cosine") for step in range(steps)]
    expected += [3e-4 * rate_factor(step, 2 * steps, 0.3, "cosine") for step in range(2 * steps)]
    assert head == pytest.approx(expected, rel=1e-12)
    for rates in noted.rates[steps:]:
        assert rates["blocks_16_18"] == pytest.approx(rates["head"] / 3)
        assert rates["blocks_04_06_plain"] == pytest.approx(rates["head"] / 3 * 0.75**4)


def test_what_is_frozen_neither_moves_nor_decays(data: FlowersDataModule) -> None:
    model = FlowerClassifier(**ALL_ON["model"])
    start: dict[str, Any] = {}

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            start.update(state(model))

    trainer(UnfreezeTopLayers(127, 0, 1), Start(), gradient_clip_val=5).fit(model, datamodule=data)
    trained = {name for name, weight in model.network.named_parameters() if weight.requires_grad}
    assert trained == {
        name
        for name, _ in model.network.named_parameters()
        if name.startswith("head") or int(name.split(".")[1]) >= 4
    }
    assert changed(start, state(model)) == trained


def test_a_cosine_keeps_the_last_epoch_and_the_last_head(data: FlowersDataModule, tmp_path: Path) -> None:
    """Losses that rise from the first epoch on would end both stages early, and choose their first epochs."""
    model, stages = Scripted([1, 2, 3, 4, 5, 6]), Stages()
    model.schedule = "cosine"
    checkpoints = RunCheckpoints(str(tmp_path))
    fit = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, max_epochs=-1, limit_train_batches=1,
        callbacks=[StageEarlyStopping(1), UnfreezeTopLayers(2, 3, 3), stages, checkpoints],
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    fit.fit(model, datamodule=data)
    assert stages.numbers == [1, 1, 1, 2, 2, 2]
    assert torch.equal(stages.heads[3], model.heads[2])
    assert (checkpoints.best_epoch, checkpoints.best_loss) == (5, 6)
    best, last = (read_checkpoint(tmp_path / name) for name in ("best.ckpt", "last.ckpt"))
    assert best["epoch"] == last["epoch"] == 5
    assert not differences(best["state_dict"], last["state_dict"], "")
    assert best[KEY]["stage"]["chooses"] is False


def test_a_schedule_without_stages_is_refused(data: FlowersDataModule) -> None:
    with pytest.raises(FlowersError, match="UnfreezeTopLayers"):
        trainer(max_epochs=1).fit(FlowerClassifier(weights=None, warmup=0.1), datamodule=data)


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Iterator[Path]:
    """A working folder with a run of two epochs in each stage, with all on, that nothing interrupted."""
    folder = tmp_path_factory.mktemp("strong")
    settings = ALL_ON | {
        "data": {"root": str(drawings), "image_size": 32, "batch_size": 8, "workers": 0},
        "export": "none",
        "trainer": ALL_ON["trainer"]
        | {"accelerator": "cpu", "devices": 1, "precision": "32", "enable_progress_bar": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "all_on.yaml").write_text(yaml.safe_dump(settings))
        assert main(["fit", "--config", "all_on.yaml", "--run_name", "whole"]) == 0
        yield folder


@pytest.mark.slow
def test_a_run_says_which_epoch_it_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "checkpoints" / "whole"
    rows = read_table(run / "metrics.csv")
    depths = {"lr_head", *(f"lr_blocks_{name}" for name in ("16_18", "13_15", "10_12", "07_09", "04_06"))}
    assert {name for name in rows[-1] if name.startswith("lr_")} == depths
    assert read_checkpoint(run / "best.ckpt")["epoch"] == 3
    assert main(["validate", "--ckpt_path", str(run / "best.ckpt"), "--data.workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "this side did not choose the checkpoint" in said
    assert f"{rows[-1]['val_loss']:.4f}" in said
    assert main(["test", "--ckpt_path", str(run / "best.ckpt"), "--data.workers", "0"]) == 0
    assert "chose the checkpoint" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(2, marks=pytest.mark.release),
        pytest.param(7, marks=pytest.mark.release),
        12,
        pytest.param(17, marks=pytest.mark.release),
    ],
)  # inside each of the four epochs
def test_a_run_stopped_inside_an_epoch_goes_on_as_if_never_stopped(home: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        hook = sends(signal.SIGTERM, step)
        patch.setattr(RunCheckpoints, "on_train_batch_start", hook, raising=False)
        assert main(["fit", "--config", "all_on.yaml", "--run_name", "part"]) == 143
    part = home / "checkpoints" / "part"
    assert read_checkpoint(part / "last.ckpt")["global_step"] == step + 1
    assert main(["fit", "--ckpt_path", str(part / "last.ckpt")]) == 0
    assert_same_runs(home / "checkpoints" / "whole", part)
    shutil.rmtree(part)


@pytest.fixture(scope="module")
def stopped(home: Path) -> Path:
    """The run, stopped after its third epoch."""
    run = home / "checkpoints" / "stopped"
    stop = ["--run_name", "stopped", "--trainer.max_epochs", "3"]
    assert main(["fit", "--config", "all_on.yaml", *stop]) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole", "stopped"])
@pytest.mark.parametrize(
    ("option", "value", "began"),
    [
        ("--unfreeze.top_epochs", "3", "2"),
        ("--unfreeze.head_epochs", "1", "2"),
        ("--model.schedule", "constant", "cosine"),
        ("--model.warmup", "0.1", "0.3"),
    ],
)
def test_rates_that_would_jump_are_refused(
    home: Path, stopped: Path, name: str, option: str, value: str, began: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = home / "checkpoints" / name
    kept = {file: file.read_bytes() for file in run.iterdir() if file.suffix in (".ckpt", ".yaml", ".csv")}
    resume = ["fit", "--ckpt_path", str(run / "last.ckpt"), "--trainer.max_epochs", "-1"]
    assert main([*resume, option, value]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"flowers_pl: {option}: this run follows a schedule over the length of its stage, which began"
        f" with {began}, not {value}; resume it with {began}, or start a new run."
    )
    assert kept == {file: file.read_bytes() for file in kept}


@pytest.mark.parametrize("option", ["--model.layer_decay", "--model.weight_decay"])
def test_other_groups_are_refused(stopped: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    off = {"--model.layer_decay": "1", "--model.weight_decay": "0"}[option]
    resume = ["fit", "--ckpt_path", str(stopped / "last.ckpt"), "--trainer.max_epochs", "-1"]
    assert main([*resume, option, off]) == 1
    assert option in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_stage_that_has_not_begun_may_be_given_other_epochs(home: Path) -> None:
    """A run of stage 1 alone that is given a second stage is the run that had both."""
    run = home / "checkpoints" / "longer"
    fit = ["fit", "--config", "all_on.yaml", "--run_name", "longer", "--unfreeze.top_epochs", "0"]
    assert main(fit) == 0
    assert main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--unfreeze.top_epochs", "2"]) == 0
    assert_same_runs(home / "checkpoints" / "whole", run)
    shutil.rmtree(run)


# ---------------------------------------------------------------- configs/strong.yaml


def test_the_strong_recipe_trains_from_block_four_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(STRONG), "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(STRONG.read_text())
    for group in ("model", "unfreeze", "average", "trainer"):
        assert settings[group] == settings[group] | written[group]
    network = unfrozen(written["unfreeze"]["layers"])
    trained = {name for name, weight in network.backbone.named_parameters() if weight.requires_grad}
    assert trained == {
        name for name, _ in network.backbone.named_parameters() if int(name.split(".")[0]) >= 4
    }
    cut = find_cut(conv_norms(network.backbone))
    assert cut == Cut(9)  # 1 + 2 + 3 + 3 convolutions in features[:4]
    assert find_cut(conv_norms(unfrozen(150).backbone)) == Cut(1)  # features[1:], as strong.yaml says


def test_a_warm_up_alone_leaves_the_choice_to_the_validation_loss(data: FlowersDataModule) -> None:
    model, stages = Scripted([1, 2, 3, 9, 8, 8, 8]), Stages()
    model.warmup = model.hparams["warmup"] = 0.5
    callbacks = [StageEarlyStopping(2), UnfreezeTopLayers(2, 6, 4), stages]
    trainer(*callbacks, limit_train_batches=1).fit(model, datamodule=data)
    assert stages.numbers == [1, 1, 1, 2, 2, 2, 2]
    assert torch.equal(stages.heads[3], model.heads[0])

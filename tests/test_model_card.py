"""export/model_card: the card says what is known, marks what is not, and names no folder of this machine."""

from __future__ import annotations

from typing import Any

import pytest

from flowers_pl.data.folder import EXCLUDED, TRAIN, TWO_CLASSES, UNREADABLE, VAL
from flowers_pl.data.split import Placed
from flowers_pl.export.model_card import TO_FILL_IN, model_card

PLACED = [
    *(Placed(f"daisy/{number}.jpg", "daisy", TRAIN, "") for number in range(3)),
    *(Placed(f"a|b/{number}.jpg", "a|b", TRAIN, "") for number in range(7)),
    Placed("a|b/9.jpg", "a|b", VAL, ""),
]
LEFT_OUT = {UNREADABLE: 1, TWO_CLASSES: 2, EXCLUDED: 1}  # as a checkpoint counts them
RESULTS = {
    "checkpoint": "/secret/best.ckpt",
    "judged": "validation photos; this side chose the checkpoint",
    "photos": 1,
    "test_accuracy": 0.875,
    "test_loss": 0.25,
    "intervals": {"test_accuracy": (0.85, 0.9)},
}


def facts(**data: Any) -> dict[str, Any]:
    known = {"root": "/secret/blooms", "val_fraction": 0.2, "split": "grouped", "split_seed": 4, "drawn": 0}
    return {
        "classes": ["daisy", "a|b"],
        "image_size": 160,
        "stage": {"number": 2, "layers": 30, "first_epoch": 10},
        "data": known | data,
    }


def settings(weights: str | None = "IMAGENET1K_V1") -> dict[str, Any]:
    return {"weights": weights, "dropout": 0.3, "head_lr": 1e-3, "top_lr": 1e-4, "seed": 5}


def test_a_card_says_what_is_known() -> None:
    card = model_card(
        facts() | {"left_out": LEFT_OUT},
        settings(),
        PLACED,
        4,
        RESULTS,
        {"final.onnx": "8.9 MB, agrees"},
        "My model",
    )
    assert card.startswith("# My model\n")
    for line in (
        "Classes, in the order of the outputs: daisy, a\\|b.",
        "- `final.onnx`: 8.9 MB, agrees",
        "20% of them are held out for validation, drawn with seed 4; near-duplicates are on one side.",
        "| daisy | 3 | 0 |",
        "| a\\|b | 7 | 1 |",
        "| all | 10 | 1 |",
        "Left out: 4 (1 excluded, 2 under two classes, 1 unreadable).",
        "- Stage 1: the head alone, Adam at 0.001, dropout 0.3.",
        "- Stage 2, from epoch 11 on: the top 30 layers too, Adam at 0.0001.",
        "- Seed 5.",
        "On 1 validation photos; this side chose the checkpoint.",
        "| test\\_accuracy | 0.8750 | 0.8500 to 0.9000 |",
        "| test\\_loss | 0.2500 | not measured |",
    ):
        assert line in card.splitlines()
    assert "/secret" not in card


def test_a_card_says_how_photos_were_split_by_folders_and_by_a_list() -> None:
    placed = [Placed(f"{side}/daisy/{n}", "daisy", side, "") for side in ("train", "val") for n in (1, 2)]
    card = model_card(facts(), settings(), placed)
    assert "Their folders are the split: 50% of them are held out for validation." in card.splitlines()
    card = model_card(facts(split="runs/other/split.csv"), settings(), placed[:3])
    assert "33% of them are held out for validation, as listed in the split.csv of an earlier run." in card


def test_a_card_shows_how_its_files_are_run_each_kind_once() -> None:
    files = {"final_int8.onnx": "2.6 MB", "final.onnx": "8.9 MB", "it's.pt2": "agrees"}
    card = model_card(facts(), settings(), files=files)
    assert 'onnxruntime.InferenceSession("final.onnx")' in card.replace("'", '"')
    assert """torch.export.load("it's.pt2")""" in card
    assert card.count("## Use\n") == 1
    assert "final_int8" not in card.partition("## Use")[2]
    assert "## Use\n" not in model_card(facts(), settings())


def test_photos_left_out_by_a_list_are_not_counted_as_unreadable() -> None:
    card = model_card(facts() | {"left_out": {EXCLUDED: 1}}, settings(), PLACED, 1)
    assert "Left out: 1 (1 excluded)." in card


def test_a_checkpoint_of_0_1_0_does_not_count_kinds() -> None:
    assert "Left out: 1." in model_card(facts(), settings(), PLACED, 1)


def test_what_only_a_person_knows_is_left_to_fill_in() -> None:
    known = model_card(facts(), settings())
    assert known.count(TO_FILL_IN) == 4  # where the photos came from; licences of model, photos, weights
    assert model_card(facts(), settings(None)).count(TO_FILL_IN) == 3


def test_a_card_without_results_says_so() -> None:
    card = model_card(facts(), settings())
    assert "Not measured yet" in card
    assert "trained with" not in card
    assert "| 95 % interval |" not in card


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"split": "notebook"}, "as the original notebook does"),
        ({"split": "/secret/split.csv"}, "as listed in the split.csv of an earlier run"),
    ],
)
def test_other_splits(data: dict[str, Any], expected: str) -> None:
    card = model_card(facts(**data), settings("/secret/mine.pth"))
    assert expected in card
    assert "`mine.pth`" in card
    assert "/secret" not in card


def test_nothing_known_of_the_data() -> None:
    card = model_card(
        {**facts(), "data": {}, "stage": {"number": 1, "layers": 0, "first_epoch": 0}}, settings()
    )
    assert "How they were split is not known." in card
    assert "Stage 2" not in card


def test_a_card_of_drawings_warns() -> None:
    card = model_card(facts(drawn=100), settings(None))
    assert card.count("drawings") == 1
    assert "no result below says\nanything about photos" in card


def test_a_card_says_how_the_rates_moved_and_which_epoch_was_kept() -> None:
    strong = {"top_head_lr": 1.2e-3, "layer_decay": 0.75, "weight_decay": 0.02, "warmup": 0.1}
    stage = facts()["stage"] | {"chooses": False}
    card = model_card(facts() | {"stage": stage}, settings() | strong | {"schedule": "cosine"})
    for line in (
        "- Stage 1: the head alone, AdamW at 0.001, dropout 0.3.",
        "- Stage 2, from epoch 11 on: the top 30 layers too, AdamW at 0.0001, the head at 0.0012, every three"
        " blocks downwards at 0.75 of the rate above.",
        "- In each stage the rates warm up over 10 % of the steps and then fall to zero by a cosine.",
        "- Batch norm keeps its statistics throughout. The epoch is the last one.",
    ):
        assert line in card.splitlines()

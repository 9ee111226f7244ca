"""The model card: what a model was made from, how good it is, what it is not for (Mitchell et al. 2019)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import flowers_pl
from flowers_pl.core.text import printable
from flowers_pl.data.folder import REVIEWED, SIDES, TRAIN, VAL
from flowers_pl.data.reviews import ACTIONS, EXCLUDE, in_words
from flowers_pl.data.split import Placed

LATER = {  # settings that checkpoints of 0.1.0 lack
    "top_head_lr": None, "layer_decay": 1.0, "warmup": 0.0, "schedule": "constant",
}  # fmt: skip
TO_FILL_IN = "**to be filled in**"
MEASURES = {
    "accuracy": "accuracy",
    "macro_precision": "precision, mean over classes",
    "macro_recall": "recall, mean over classes",
    "macro_f1": "F1, mean over classes",
    "top2_accuracy": "top-2 accuracy",
    "nll": "negative log-likelihood (nats)",
    "ece": "expected calibration error",
}


def model_card(
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    placed: Sequence[Placed] = (),
    num_left_out: int = 0,
    results: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    title: str = "Flower classifier",
) -> str:
    """Write a model card.

    Args:
        facts: `checkpoint["flowers_pl"]`.
        settings: `checkpoint["hyper_parameters"]`.
        placed: the photos trained and validated with (split.csv); empty where they are not known.
        num_left_out: photos of the folder that took no part; `facts["left_out"]` counts them by kind.
        results: as in test.json: `judged` (which photos), `photos` (how many), `step`, numbers, and perhaps
            `intervals`, a dict from a number's name to (low, high), 95 %.
        files: from an exported file's name to what was measured of it.
        title: of the card.

    Returns:
        Markdown. What only a person can know is marked `TO_FILL_IN`.
    """
    data, files = facts["data"], files or {}
    # Each kind of file is shown in use once, by the shortest name: final.onnx, not final_int8.onnx.
    shown = {PurePath(name).suffix: name for name in sorted(files, key=len, reverse=True)}
    by_folders = data.get("split") == "grouped" and _is_split_by_folders(placed)
    environment = Environment(
        loader=PackageLoader("flowers_pl", "export"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"text": _as_text, "code": _as_code, "repr": repr}
    return environment.get_template("model_card.md.jinja").render(
        title=title,
        version=flowers_pl.__version__,
        torch=version("torch").partition("+")[0],
        blank=TO_FILL_IN,
        classes=facts["classes"],
        image_size=facts["image_size"],
        files=files,
        pt2=shown.get(".pt2"),
        onnx=shown.get(".onnx"),
        pte=shown.get(".pte"),
        drawn=data.get("drawn"),
        root=PurePath(data.get("root", "")).name,
        split=data.get("split", ""),
        split_seed=data.get("split_seed"),
        by_folders=by_folders,
        val_share=f"{_val_share(data, placed, by_folders):.0%}",
        counts=list(_counts(facts["classes"], placed)) if placed else [],
        reviewed=_reviewed(facts),
        left_out=_left_out(num_left_out, facts.get("left_out", {})),
        weights=PurePath(settings["weights"] or "").name,
        stage=facts["stage"],
        average=facts.get("average"),
        temperature=facts.get("temperature"),
        flip_test=settings.get("flip_test", False),
        refit_of=facts.get("refit_of"),
        own=results != (facts.get("refit_of") or {}).get("results"),
        **{name: settings[name] for name in ("head_lr", "top_lr", "dropout", "seed")},
        **{name: settings.get(name, default) for name, default in LATER.items()},
        optimizer="AdamW" if settings.get("weight_decay") else "Adam",
        results=results,
        measures=list(_measures(results or {})),
    )


def _is_split_by_folders(placed: Sequence[Placed]) -> bool:
    """Return whether the root's folders, such as train and val, are the split."""
    sides = {SIDES.get(photo.path.partition("/")[0].lower()): photo.side for photo in placed}
    return None not in sides and VAL in sides


def _val_share(data: Mapping[str, Any], placed: Sequence[Placed], by_folders: bool) -> float:
    """Return the share of the photos that validate: what was asked for, or what a list or folders came to."""
    drawn = data.get("split") in ("", "grouped", "notebook") and not by_folders
    if drawn or not placed:
        return float(data.get("val_fraction", 0))
    return sum(photo.side == VAL for photo in placed) / len(placed)


def sealed(card: str) -> str:
    """Add a line to a card by which `is_sealed` tells whether a person has changed it since.

    >>> card = sealed("# Roses\\n")
    >>> is_sealed(card), is_sealed(card.replace("Roses", "Tulips"))
    (True, False)
    """
    return f"{card}\n<!-- flowers_pl wrote this card: {_digest(card)} -->\n"


def is_sealed(card: str) -> bool:
    """Say whether a card is as `sealed` returned it, but for white space, which editors change."""
    body, _, seal = card.rstrip().rpartition("\n")
    return seal == f"<!-- flowers_pl wrote this card: {_digest(body)} -->"


def _digest(text: str) -> str:
    return hashlib.blake2b(" ".join(text.split()).encode(errors="replace"), digest_size=8).hexdigest()


def _as_text(name: str) -> str:
    """Escape a name for Markdown text, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", printable(name))


def _as_code(name: str) -> str:
    """Quote a name as Markdown code, by more backticks than it has in a row."""
    longest = max(map(len, re.findall("`+", name)), default=0)
    space = " " if longest else ""
    return f"{'`' * (longest + 1)}{space}{printable(name)}{space}{'`' * (longest + 1)}"


def _counts(classes: Sequence[str], placed: Sequence[Placed]) -> Iterator[tuple[str, int, int]]:
    """Count the photos of each class, and of all, on both sides."""
    count = Counter((photo.label, photo.side) for photo in placed)
    yield from ((name, count[name, TRAIN], count[name, VAL]) for name in classes)
    sides = Counter(photo.side for photo in placed)
    yield "all", sides[TRAIN], sides[VAL]


def _left_out(num_left_out: int, kinds: Mapping[str, int]) -> str:
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{num_left_out} ({listed})" if listed else str(num_left_out)


def _reviewed(facts: Mapping[str, Any]) -> str:
    """Say what a review did; nothing where there was none."""
    counts = {EXCLUDE: facts.get("left_out", {}).get(REVIEWED, 0), **facts.get("review", {})}
    done = {action: counts[action] for action in ACTIONS if counts.get(action)}
    return in_words(done, "A review") if done else ""


def _measures(results: Mapping[str, Any]) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    """Name each number among the results, with its interval where it has one."""
    for name, value in results.items():
        if isinstance(value, int | float) and name not in ("photos", "step"):
            low_high = results.get("intervals", {}).get(name)
            yield MEASURES.get(name, name), value, tuple(low_high) if low_high else None

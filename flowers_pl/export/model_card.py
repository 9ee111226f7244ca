"""The model card: what a model was made from, how good it is, what it is not for (Mitchell et al. 2019)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from flowers_pl.data.folder import LeftOut
from flowers_pl.data.split import TRAIN, VAL, Placed

TO_FILL_IN = "**to be filled in**"

NAMES = {
    "accuracy": "accuracy",
    "macro_precision": "precision, mean of the classes",
    "macro_recall": "recall, mean of the classes",
    "macro_f1": "F1, mean of the classes",
    "top2_accuracy": "the right class among the two likeliest",
    "nll": "negative log-likelihood (nats)",
    "ece": "expected calibration error",
}

TEMPLATE = """\
# {title}

A classifier of {kind}: MobileNetV2 (Sandler et al. 2018) with a new head, {count} classes, written by
flowers_pl {version}. It takes RGB {kind} of any size as uint8 (N, 3, H, W), squashes them to {size}x{size}
pixels itself, and gives one probability a class.

Classes, in the order of the outputs: {classes}.

## Files

{files}
{usage}
## Intended use

{use}
Not for decisions that a mistake makes costly, such as telling edible plants from poisonous ones.

## Data

{data}

## Recipe

{recipe}

## Results

{results}

## Limits

{limits}

## Licence

- Of this model: {blank}.
- Of the {kind} that it was trained on: {data_licence}.
- Of the weights that it started from: {weights_licence}.
"""

USAGE = """
## Use

The files need nothing of flowers_pl. A photo's orientation is to be applied first, as here:

```python
import numpy as np
from PIL import Image, ImageOps

photo = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
photos = photo.transpose(2, 0, 1)[None]  # uint8 (1, 3, height, width)
```
"""

SNIPPETS = {
    ".pt2": """
```python
import torch  # {torch} or newer

model = torch.export.load({name!r}).module()  # load only files that you trust
print(model(torch.tensor(photos)))
```
""",
    ".onnx": """
```python
import onnxruntime

model = onnxruntime.InferenceSession({name!r})
print(model.run(None, {{"photos": photos}})[0])
```
""",
}


def model_card(
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    placed: Sequence[Placed] = (),
    left_out: Sequence[LeftOut] = (),
    results: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    title: str = "Flower classifier",
) -> str:
    """Write a model card.

    Args:
        facts: `checkpoint["flowers_pl"]`.
        settings: `checkpoint["hyper_parameters"]`.
        placed: the photos trained and validated with (split.csv); empty where they are not known.
        left_out: photos of the folder that took no part (left_out.csv).
        results: as in test.json: `judged` (which photos), `photos` (how many), `step`, numbers, and perhaps
            `intervals`, a dict from a number's name to (low, high), 95 %.
        files: from an exported file's name to what was measured of it.
        title: of the card.

    Returns:
        Markdown. What only a person can know is marked `TO_FILL_IN`.
    """
    drawn = bool(facts["data"].get("drawn"))
    kind = "drawings" if drawn else "photos"
    return TEMPLATE.format(
        title=title,
        kind=kind,
        count=len(facts["classes"]),
        version=_version(),
        size=facts["image_size"],
        classes=", ".join(map(_plain, facts["classes"])),
        files=_bullets(f"`{name}`: {what}" for name, what in (files or {}).items())
        or "None were written with this card.",
        usage=_usage(files or {}),
        use=_use(drawn),
        data=_data(facts, placed, left_out, kind),
        recipe=_bullets(_recipe(facts, settings)),
        results=_results(results),
        limits=_bullets(_limits(drawn)),
        weights_licence=TO_FILL_IN if settings["weights"] is not None else "it started from none",
        data_licence="the program made them" if drawn else TO_FILL_IN,
        blank=TO_FILL_IN,
    )


def _version() -> str:
    from flowers_pl import __version__

    return __version__


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plain(name: str) -> str:
    """A name as Markdown text, also inside a table."""
    return "".join(f"\\{sign}" if sign in r"\`*_[]<>|#" else sign for sign in " ".join(name.split()))


def _usage(files: Iterable[str]) -> str:
    """How each kind of file is run, shown by the one with the shortest name: not final_int8.onnx."""
    of_kind = {PurePath(name).suffix: name for name in sorted(files, key=len, reverse=True)}
    snippets = (
        SNIPPETS[kind].format(name=name, torch=version("torch").partition("+")[0])
        for kind, name in of_kind.items()
    )
    return USAGE + "".join(snippets) if of_kind else ""


def _use(drawn: bool) -> str:
    if drawn:
        return "Trying the program out: the model was trained on drawings and knows nothing of real flowers."
    return "Sorting photos that each show one of the classes above, where a person looks at what is unsure."


def _data(facts: Mapping[str, Any], placed: Sequence[Placed], left_out: Sequence[LeftOut], kind: str) -> str:
    settings = facts["data"]
    root = PurePath(settings["root"]).name if "root" in settings else ""
    origin = "flowers_pl drew them" if settings.get("drawn") else TO_FILL_IN
    folder = f"The folder `{root}`; where its {kind} came from: " if root else f"The {kind}: "
    lines = [f"{folder}{origin}.", _split(settings)]
    if placed:
        lines += ["", *_counts(facts["classes"], placed)]
        reasons = Counter(
            "unreadable" if "stands under" not in one.reason else "under two classes" for one in left_out
        )
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        lines += ["", f"Left out: {len(left_out)}{f' ({told})' if told else ''}."]
    return "\n".join(lines)


def _split(settings: Mapping[str, Any]) -> str:
    if "split" not in settings:
        return "Split: not known."
    how = {
        "grouped": "near-duplicates stand on one side, drawn with seed {split_seed}",
        "notebook": "as the original notebook splits, near-duplicates may stand on both sides",
    }.get(settings["split"], "as a split.csv of an earlier run says")
    return f"Split: {settings['val_fraction']:.0%} validate; {how.format(**settings)}."


def _counts(classes: Sequence[str], placed: Sequence[Placed]) -> Iterator[str]:
    count = Counter((one.label, one.side) for one in placed)
    yield "| class | trained with | validated with |"
    yield "|---|---:|---:|"
    for name in classes:
        yield f"| {_plain(name)} | {count[name, TRAIN]} | {count[name, VAL]} |"
    sides = Counter(one.side for one in placed)
    yield f"| all | {sides[TRAIN]} | {sides[VAL]} |"


def _recipe(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    weights = settings["weights"]
    if weights is None:
        yield "Start: random weights; batch-norm statistics measured once on training pictures."
    else:
        yield f"Start: the backbone's weights `{PurePath(weights).name}` (torchvision's name, or a file's)."
    yield f"Stage 1: the head alone, Adam at {settings['head_lr']:g}, dropout {settings['dropout']:g}."
    stage = facts["stage"]
    if stage["number"] > 1:
        top = "all layers" if stage["layers"] == "all" else f"the top {stage['layers']} layers"
        yield f"Stage 2, from epoch {stage['first_epoch'] + 1} on: {top} too, Adam at {settings['top_lr']:g}."
        if facts.get("average"):
            yield f"What is kept of stage 2 is a running average of its weights (decay {facts['average']:g})."
    yield "Batch norm keeps its statistics throughout; the epoch is that with the lowest validation loss."
    yield f"Seed {settings['seed']}."


def _results(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "Not measured yet: `python -m flowers_pl test` measures them."
    intervals = results.get("intervals", {})
    numbers = {
        name: value
        for name, value in results.items()
        if isinstance(value, float) or (isinstance(value, int) and name not in ("photos", "step"))
    }
    lines = [
        f"On {results['photos']} {results['judged']}.",
        "",
        "| measure | value | 95 % interval |",
        "|---|---:|---:|",
    ]
    for name, value in numbers.items():
        low_high = intervals.get(name)
        interval = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else "not measured"
        lines.append(f"| {NAMES.get(name) or _plain(name)} | {value:.4f} | {interval} |")
    return "\n".join(lines)


def _limits(drawn: bool) -> Iterator[str]:
    yield "Whatever a picture shows, it gets one of the classes above; there is none for anything else."
    yield "Pictures are squashed to a square, so very wide or tall ones look distorted to the model."
    yield "Pictures from elsewhere (other cameras, places, seasons) may fare worse than those judged here."
    yield "Where the judged pictures also chose the weights, the results are a little too good."
    if drawn:
        yield "The pictures are drawings: none of the results says anything about photos."

"""Check what a .pt2 file holds before torch loads it."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from flowers_pl.core.errors import FlowersError
from flowers_pl.export.write import METADATA

# What our own .pt2 files hold. In others, torch would unpickle members and evaluate expressions.
_MEMBERS = re.compile(
    r"models/model\.json|data/(weights|constants)/(model_\w+_config\.json|weight_\d+|tensor_\d+)"
    rf"|data/sample_inputs/model\.pt|extra/{re.escape(METADATA)}|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
_EXPRESSION = re.compile(  # a number is one token, or refusing a long one would take exponential time
    r"(Symbol|Integer|Add|Mul|(positive|integer)=True|'s\d+'|\bs\d+(?!\d)|\d+(?!\d)|\*(?!\*)|[-+(), ])*"
)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(_assert_tensor_metadata|to|_to_copy|_upsample_bilinear2d_aa|add|sub|div|floor|clamp"
    r"|conv2d|batch_norm|hardtanh_?|relu6_?|mean|linear|softmax|flip|cat|unflatten|transpose)\.\w+"
)


def check_archive(path: Path) -> dict[str, Any]:
    """Return the metadata of a `.pt2` after checking that loading it runs no code from the file.

    torch (2.14) unpickles sample inputs and weights that are marked so, lets sympy evaluate sizes as Python,
    executes guards, looks operators up by name, and loads compiled libraries.

    Raises:
        FlowersError: the file holds anything that `export_torch` does not write.
    """
    with path.open("rb") as stream, PT2ArchiveReader(stream) as archive:
        if unknown := [name for name in archive.get_file_names() if not _MEMBERS.fullmatch(name)]:
            raise _refused(path, unknown[0])
        for kind in ("weights", "constants"):
            config = json.loads(archive.read_string(f"data/{kind}/model_{kind}_config.json"))["config"]
            if any(part["use_pickle"] for part in config.values()):
                raise _refused(path, f"pickled {kind}")
        model = json.loads(archive.read_string("models/model.json"))
        facts = json.loads(archive.read_string(f"extra/{METADATA}"))
        try:
            torch.load(io.BytesIO(archive.read_bytes("data/sample_inputs/model.pt")), weights_only=True)
        except pickle.UnpicklingError as error:
            raise _refused(path, "pickled objects") from error
    if model["guards_code"]:
        raise _refused(path, "code")
    for key, text in _strings(model):
        if key == "target" and not _OPERATOR.fullmatch(text):
            raise _refused(path, f"operator {text[:40]!r}")
        if key == "expr_str" and not _EXPRESSION.fullmatch(text):
            raise _refused(path, f"expression {text[:40]!r}")
    return dict(facts)


def _refused(path: Path, what: str) -> FlowersError:
    return FlowersError(
        f"--exported: {str(path)!r} holds {what}, which flowers_pl does not write and which could run code;"
        " export the model again."
    )


def _strings(part: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all strings in parsed JSON, each with its key."""
    if isinstance(part, str):
        yield key, part
    elif isinstance(part, (dict, list)):
        for name, value in part.items() if isinstance(part, dict) else ((key, value) for value in part):
            yield from _strings(value, name)

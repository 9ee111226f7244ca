"""How good a model is, as `test`, the end of a run and an export have noted it, and which model they mean."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowers_pl.core.files import read_json
from flowers_pl.core.names import EXPORTS, KEY, TEST_JSON
from flowers_pl.training.checkpoint_files import read_checkpoint

log = logging.getLogger(__name__)
IDENTITY: tuple[str, ...] = ("step", "model")


def identity_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a checkpoint's answers from those of others, for JSON.

    The step alone does not: a run that has ended may get a temperature, and two runs have the same steps.
    """
    head = checkpoint["state_dict"]["network.head.weight"].contiguous()
    after = checkpoint[KEY].get("temperature"), checkpoint["hyper_parameters"].get("flip_test", False)
    digest = hashlib.blake2b(head.numpy().tobytes() + repr(after).encode(), digest_size=8).hexdigest()
    return dict(zip(IDENTITY, (checkpoint["global_step"], digest), strict=True))


def is_of(found: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Return whether nothing in what was noted speaks against a model; 0.1.0 noted the step alone."""
    return all(found.get(name, value) == value for name, value in identity.items())


def results_of(ckpt: Path) -> dict[str, Any] | None:
    """Return how a checkpoint was evaluated, by `test` or else at the end of its run: the numbers for a card,
    and what they were measured on, without the path of the checkpoint; None where that is not known."""
    folder, identity = ckpt.parent, identity_of(read_checkpoint(ckpt))
    tested = read_known(folder / TEST_JSON, judged=str, photos=int)
    exported = read_known(folder / EXPORTS, step=int, files=dict)
    for source, results in ((tested, tested), (exported, exported.get("results"))):
        if results and is_of(source, identity):
            return {
                name: value
                for name, value in results.items()
                if name == "intervals"
                or (isinstance(value, str | int | float) and name not in ("checkpoint", *IDENTITY))
            }
    return None


class Judgement(NamedTuple):
    """How good a model is.

    Args:
        accuracy: share of photos that it classified correctly; None where that was not measured.
        judged_on: which photos these were, in words; None likewise.
    """

    accuracy: float | None = None
    judged_on: str | None = None


def judgement_of(folder: Path, identity: Mapping[str, Any] | None = None) -> Judgement:
    """Return what the card in a folder says of how good a model is.

    Args:
        folder: of the checkpoint or the exported file.
        identity: of the checkpoint; None for what was exported.
    """
    exports = read_known(folder / EXPORTS, step=int, files=dict)
    exported = {name: exports[name] for name in IDENTITY if name in exports}
    wanted = exported if identity is None else identity
    tested = read_known(folder / TEST_JSON, judged=str, photos=int, accuracy=float)
    for found in (tested, {**(exports.get("results") or {}), **exported}):
        measured = "step" in found and isinstance(found.get("accuracy"), float)
        if measured and wanted and is_of(found, wanted):
            judged = str(found.get("judged", "images"))
            before, of, place = judged.partition("images of ")
            public = f"{of}{Path(place).name}" if of and not before else judged  # no path of this machine
            return Judgement(found["accuracy"], f"{found.get('photos', 0):,} {public}")
    return Judgement()


def read_known(file: Path, **entries: type) -> dict[str, Any]:
    """Read a file that `write_card` or `test` wrote; return nothing where it is missing or damaged."""
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
        if all(isinstance(content[name], kind) for name, kind in entries.items()):
            return content
    except (OSError, ValueError, LookupError, TypeError):  # no JSON, or other JSON
        pass
    log.warning("%s is damaged, so the model card does not use it.", file)
    return {}

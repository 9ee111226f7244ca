"""The command `audit`: what is wrong with a folder of photos, as text, JSON and a page."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from flowers_pl.audit.examination import examine
from flowers_pl.audit.html import page
from flowers_pl.audit.text import report, to_leave_out
from flowers_pl.cli.commands import SUMMARIES
from flowers_pl.cli.options import Options
from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import check_writable, replacing
from flowers_pl.core.screen import show
from flowers_pl.data.exclusions import write_exclusions
from flowers_pl.data.folder import class_folders
from flowers_pl.data.split_photos import check_settings
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.network.weights import load_weights

log = logging.getLogger(__name__)
ON_SCREEN = 10  # lines a section; audit.txt has all


@dataclass
class AuditData:
    """Which photos to look at.

    Args:
        root: the folder; has one folder of photos for each class.
        image_size: pixels a side at which photos are judged.
        split: a split.csv to look for duplicates on both sides of, besides the splits 'notebook' and
            'grouped'.
        val_fraction: share of the photos that validate in those two.
        split_seed: decides which photos validate in 'grouped'.
        cache_dir: where decoded photos are kept; default ~/.cache/flowers_pl.
        workers: processes that decode; default as many as there are cores.
    """

    root: str = "data/flowers"
    image_size: int = 160
    split: str | None = None
    val_fraction: float = 0.2
    split_seed: int = 0
    cache_dir: str | None = None
    workers: int | None = None


@dataclass
class AuditModel:
    """What looks at them.

    Args:
        weights: of the network whose features labels are checked by: a name of
            torchvision.models.MobileNet_V2_Weights, a path to a state_dict, or null to leave out what needs a
            network.
    """

    weights: str | None = "IMAGENET1K_V1"


def audit(
    data: AuditData = AuditData(),  # noqa: B008 (never changed)
    model: AuditModel = AuditModel(),  # noqa: B008
    output: str = "audit",
    write: str | None = None,
    most: int = 50,
) -> None:
    """Tell what is wrong with a folder of photos: bad files, duplicates, suspect labels, odd pictures.

    Nothing is deleted, moved or changed.

    Args:
        data: which photos.
        model: what looks at them.
        output: folder for audit.html, audit.txt and audit.json.
        write: also write a list of the photos that a clean set would go without, for 'fit --data.exclude';
            look through it first.
        most: photos a section of audit.html.
    """
    _check(data, output, write, most)
    network = None
    if model.weights is not None:
        network = FlowerNet(2).eval()
        load_weights(network.backbone, model.weights)
    found = examine(
        Path(data.root), network, data.image_size, data.split, data.val_fraction, data.split_seed,
        None if data.cache_dir is None else Path(data.cache_dir), data.workers,
    )  # fmt: skip
    folder = Path(output)
    _write(folder / "audit.txt", report(found) + "\n")
    _write(folder / "audit.json", json.dumps(found.as_dict(), indent=1) + "\n")
    _write(folder / "audit.html", page(found, most))
    show(report(found, ON_SCREEN))
    log.info("Written to %s: audit.html, audit.txt, audit.json.", folder)
    if write is not None:
        listed = to_leave_out(found)
        write_exclusions(write, listed)
        log.info(
            "%d photos listed in %s: look through it, remove the rows of photos to keep, and train without"
            " the rest by 'fit --data.exclude %s'.", len(listed), write, write,
        )  # fmt: skip


def _check(data: AuditData, output: str, write: str | None, most: int) -> None:
    """Refuse at once what could not be done at the end, or would do harm."""
    check_settings(data.image_size, data.val_fraction, data.workers)
    if most < 0:
        raise FlowersError(f"--most must be 0 or more, not {most}.")
    class_folders(data.root)
    root = Path(data.root).resolve()
    for option, file in (("--output", output), ("--write", write)):
        if file is not None and Path(file).resolve().is_relative_to(root):
            raise FlowersError(
                f"{option}: {file!r} is inside --data.root, where it would pass as a photo; name another."
            )
    check_writable(output, "--output")
    if write is None:
        return
    check_writable(Path(write).parent, "--write")
    if Path(write).exists():
        raise FlowersError(
            f"--write: {write!r} exists already, perhaps with your changes; give another name or remove it."
        )


def _write(file: Path, text: str) -> None:
    try:
        with replacing(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FlowersError(
            f"--output: {str(file)!r} cannot be written ({reason_of(error)}); name another folder."
        ) from error


def run(args: list[str]) -> None:
    """Run the subcommand."""
    options = Options("audit", SUMMARIES["audit"])
    options.add_function(audit)
    audit(**options.parser.instantiate(options.parse(args)))

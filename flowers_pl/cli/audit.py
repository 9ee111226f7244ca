"""The subcommand `audit`: what is wrong with a folder of photos, as text, JSON and a page."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from flowers_pl.audit.clean_copy import copy_clean
from flowers_pl.audit.examination import examine
from flowers_pl.audit.html import render_page
from flowers_pl.audit.text import report, to_leave_out
from flowers_pl.cli.options import run_function
from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import replacing
from flowers_pl.core.paths import check_writable
from flowers_pl.core.screen import show
from flowers_pl.core.text import plural
from flowers_pl.data.exclusions import write_exclusions
from flowers_pl.data.folder import class_folders
from flowers_pl.data.reviews import read_review
from flowers_pl.data.split_photos import check_settings
from flowers_pl.network.mobilenet import FlowerNet
from flowers_pl.network.weights import NotDownloadedError, load_weights
from flowers_pl.packs.remote import is_address
from flowers_pl.packs.roots import find_pack

log = logging.getLogger(__name__)
ON_SCREEN = 10  # lines a section; audit.txt has all


@dataclass
class AuditData:
    """The photos to audit.

    Args:
        root: a folder with one folder of photos for each class.
        image_size: pixels a side at which photos are examined.
        split: a split.csv to check for duplicates on both sides, besides the splits 'notebook' and 'grouped'.
        val_fraction: share of validation photos in those two splits.
        split_seed: seed that chooses the validation photos of 'grouped'.
        cache_dir: folder for decoded photos; default ~/.cache/flowers_pl.
        workers: number of decoding processes; default as many as there are cores.
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
    """The network that audits them.

    Args:
        weights: pretrained weights of the network whose features are used to check labels: a name of
            torchvision.models.MobileNet_V2_Weights, a path to a state_dict, or null to skip all checks that
            need a network.
    """

    weights: str | None = "IMAGENET1K_V1"


def audit(
    data: AuditData = AuditData(),  # noqa: B008 (never changed)
    model: AuditModel = AuditModel(),  # noqa: B008
    output: str = "audit",
    write: str | None = None,
    most: int = 50,
    review: str | None = None,
    apply: str | None = None,
    to: str | None = None,
) -> None:
    """Find what is wrong with a folder of photos: bad files, duplicates, suspect labels, poor pictures.

    Nothing is deleted, moved or changed.

    Args:
        data: the photos.
        model: the network.
        output: folder for audit.html, audit.txt and audit.json.
        write: file for a list of the photos that a clean set would do without; look through it before you
            give it to 'fit --data.exclude'.
        most: number of findings that audit.html shows in a section, of those that ask for no decision.
        review: file of earlier decisions, which the page saved: what they settle is not asked again.
        apply: file of decisions, which the page saved: instead of an audit, make a clean copy of the folder
            as they say.
        to: folder for that copy, empty or not there yet.
    """
    if is_address(data.root) or find_pack(data.root) is not None:
        raise FlowersError(
            f"--data.root: {data.root!r} is a pack, which 'audit' does not read, because it judges files;"
            " audit the folder before you pack it."
        )
    if apply is not None or to is not None:
        _apply(data.root, apply, to)
        return
    _check(data, output, write, most, review)
    network = _network(model.weights)
    findings = examine(
        Path(data.root), network, data.image_size, data.split, data.val_fraction, data.split_seed,
        None if data.cache_dir is None else Path(data.cache_dir), data.workers, review,
    )  # fmt: skip
    folder = Path(output)
    _write(folder / "audit.txt", report(findings) + "\n")
    _write(folder / "audit.json", json.dumps(findings.as_dict(), indent=1) + "\n")
    _write(
        folder / "audit.html", render_page(findings, most, read_review(review, "--review") if review else ())
    )
    show(report(findings, ON_SCREEN))
    log.info("Written to %s: audit.html, audit.txt, audit.json.", folder)
    if findings.asked:
        log.info(
            "%s to decide on: open %s in a browser, and train by your decisions with 'fit --data.review"
            " review.csv'.", plural(len(findings.asked), "photo"), folder / "audit.html",
        )  # fmt: skip
    if write is not None:
        listed = to_leave_out(findings)
        write_exclusions(write, listed)
        log.info(
            "%d photos listed in %s: look through it, remove the rows of photos to keep, and train without"
            " the rest by 'fit --data.exclude %s'.", len(listed), write, write,
        )  # fmt: skip


def _network(weights: str | None) -> FlowerNet | None:
    """Return the network that checks labels; None, with a warning, where its weights cannot be had."""
    if weights is None:
        return None
    network = FlowerNet(2).eval()
    try:
        load_weights(network.backbone, weights)
    except NotDownloadedError as error:
        log.warning("Labels will not be checked. %s", error)
        return None
    return network


def _apply(root: str, review: str | None, to: str | None) -> None:
    if review is None or to is None:
        given, missing = ("--to", "--apply FILE") if review is None else ("--apply", "--to DIR")
        raise FlowersError(f"{given} makes a clean copy of the folder together with {missing}; give both.")
    copy_clean(Path(root), review, Path(to))


def _check(data: AuditData, output: str, write: str | None, most: int, review: str | None) -> None:
    """Refuse at once what would fail at the end or do harm."""
    check_settings(data.image_size, data.val_fraction, data.workers)
    if most < 0:
        raise FlowersError(f"--most must be 0 or more, not {most}.")
    if review is not None:
        read_review(review, "--review")
    class_folders(data.root)
    root = Path(data.root).resolve()
    for option, file in (("--output", output), ("--write", write)):
        if file is not None and Path(file).resolve().is_relative_to(root):
            raise FlowersError(
                f"{option}: {file!r} is inside --data.root, where it would count as a photo; choose another."
            )
    check_writable(output, "--output")
    if write is None:
        return
    check_writable(Path(write).parent, "--write")
    if Path(write).exists():
        raise FlowersError(
            f"--write: {write!r} exists already, perhaps with your changes; choose another name or remove it."
        )


def _write(file: Path, text: str) -> None:
    try:
        with replacing(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FlowersError(
            f"--output: {str(file)!r} cannot be written ({reason_of(error)}); choose another folder."
        ) from error


def run(args: list[str]) -> None:
    """Run the subcommand."""
    run_function(audit, args)

"""A person's decisions on photos: review.csv, which the audit's page saves and `--data.review` takes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv, reading_table, sha256_of
from flowers_pl.core.text import nfc, plural, printable
from flowers_pl.data.cache import DecodedPhotos
from flowers_pl.data.exclusions import match_names
from flowers_pl.data.folder import NAMED, REVIEWED, LeftOut, Photo
from flowers_pl.packs.roots import find_pack

log = logging.getLogger(__name__)
HEADER = ("path", "action", "label", "sha256")
KEEP, EXCLUDE, RELABEL = ACTIONS = ("keep", "exclude", "relabel")
UNUSED = "unused"
HOW = "give the review.csv that the page of 'audit' saved"


class Decision(NamedTuple):
    """What a person decided on a photo.

    Args:
        path: see `folder.Photo`.
        action: one of `ACTIONS`.
        label: the class that the photo is of, for `RELABEL`; else of no account.
        sha256: of the bytes of the file that the person saw, 64 hexadecimal digits.
    """

    path: str
    action: str
    label: str
    sha256: str


@dataclass(frozen=True)
class Review:
    """Decisions, compared with the photos that are there.

    Args:
        used: those that hold, by the path as the folder spells it.
        unused: why the others do not, by their paths.
    """

    used: dict[str, Decision] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def paths(self, action: str) -> list[str]:
        """Return the paths of the photos that an action is for."""
        return [path for path, decision in self.used.items() if decision.action == action]

    @property
    def relabelled(self) -> dict[str, str]:
        """Return the new label of each photo that gets one, by its path."""
        return {path: self.used[path].label for path in self.paths(RELABEL)}

    @property
    def counts(self) -> dict[str, int]:
        """Return how many decisions of each action hold and how many are unused, without zeros."""
        counts = Counter(decision.action for decision in self.used.values())
        return dict(counts) | ({UNUSED: len(self.unused)} if self.unused else {})

    def without(self, paths: Iterable[str], reason: str) -> Review:
        """Return the review with the decisions on some photos unused, for one reason."""
        fallen = self.used.keys() & set(paths)
        used = {path: decision for path, decision in self.used.items() if path not in fallen}
        return Review(used, self.unused | dict.fromkeys(sorted(fallen), reason))


def is_plain_name(label: str) -> bool:
    """Return whether a label can be the name of a new class folder on every system.

    >>> [is_plain_name(label) for label in ("oxeye daisy", "../rose", ".rose", "a/b", "rose.", "")]
    [True, False, False, False, False, False]
    """
    separate = set(label) & set('/\\:*?"<>|')
    return bool(
        label.isprintable() and not separate and label.strip(" .") == label and 0 < len(label.encode()) < 256
    )


def read_review(file: str | os.PathLike[str], option: str = "--data.review") -> list[Decision]:
    """Read decisions.

    Args:
        file: CSV with the columns path, action, label and sha256.
        option: that named it, for the messages.

    Raises:
        FlowersError: it is missing or no such list, or has two different decisions on a photo.
    """
    with reading_table(option, file, HOW):
        rows = read_csv(file, HEADER)
    decisions: dict[str, Decision] = {}
    for row in rows:
        path, action, label, digest = (row[name].strip() if name != "path" else row[name] for name in HEADER)
        decision = Decision(path.removeprefix("./"), action.lower(), label, digest.lower())
        wrong = _fault(decision)
        if decisions.setdefault(decision.path, decision) != decision:
            wrong = f"has two different decisions on {path!r}; remove one"
        if wrong:
            raise FlowersError(f"{option}: {str(file)!r} {wrong}.")
    return list(decisions.values())


def _fault(decision: Decision) -> str:
    path, action, label, digest = decision
    if not path:
        return "has a row without a path; remove it"
    if action not in ACTIONS:
        return f"has the action {action!r} for {path!r}; it must be keep, exclude or relabel"
    if action == RELABEL and not label:
        return f"has no label for {path!r}, whose action is relabel; name its class"
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        return f"has no SHA-256 for {path!r}; 'sha256sum' prints it, as 64 hexadecimal digits"
    return ""


def check_review(
    root: Path, listed: Sequence[Photo], decisions: Iterable[Decision], new_classes: bool = False
) -> Review:
    """Compare decisions with the photos that are there; labels are spelled as the folders are.

    Args:
        root: the folder of class folders, or a pack of one.
        listed: all files of the class folders, with their classes.
        decisions: on photos of `root`.
        new_classes: whether a label may be no class of the folder, as long as it could be a folder's name.

    Raises:
        FlowersError: a label is no class, or two decisions are on one photo.
    """
    spelled = {nfc(photo.label): photo.label for photo in listed}
    given = {one.path: one for one in decisions}
    by_path = match_names(given, (photo.path for photo in listed))
    if len(by_path) < len(given):
        twice = Counter(nfc(path) for path in given).most_common(1)[0][0]
        raise FlowersError(f"{twice!r} is listed in two spellings of its letters (Unicode); remove one row")
    there, pack = {photo.path for photo in listed}, find_pack(root)
    used, unused = {}, {}
    for path, decision in by_path.items():
        if path not in there:
            unused[path] = "is missing"
            continue
        if (sha256_of(root / path) if pack is None else pack.sha256(path)) != decision.sha256:
            unused[path] = "is another file than the one that was reviewed"
            continue
        label = spelled.get(nfc(decision.label))
        if label is None and decision.action == RELABEL:
            label = decision.label
            if not new_classes:
                raise FlowersError(
                    f"the label {label!r} of {path!r} is no class of {str(root)!r}; it must be one of"
                    f" {', '.join(list(spelled.values())[:NAMED])}"
                )
            if not is_plain_name(label):
                raise FlowersError(
                    f"the label {label!r} of {path!r} is no plain name of a folder; correct it"
                )
        used[path] = decision._replace(path=path, label=label or "")
    return Review(used, unused)


def open_review(
    file: str | os.PathLike[str] | None,
    root: Path,
    listed: Sequence[Photo],
    set_aside: Mapping[str, Iterable[str]] | None = None,
    option: str = "--data.review",
    new_classes: bool = False,
) -> Review:
    """Read a review, compare it with the photos of a folder, and log what it does and which rows do nothing.

    Args:
        file: see `read_review`; None for no review.
        root: the folder of class folders.
        listed: all files of the class folders, with their classes.
        set_aside: photos whose rows are not used, by the reason.
        option: that named the file, for the messages.
        new_classes: whether a label may be no class of the folder, as long as it could be a folder's name.

    Raises:
        FlowersError: the file cannot be read, or a label in it is no class.
    """
    if file is None:
        return Review()
    decisions = read_review(file, option)
    try:
        review = check_review(root, listed, decisions, new_classes)
    except FlowersError as error:
        raise FlowersError(f"{option}: {str(file)!r}: {error}.") from error
    for reason, paths in (set_aside or {}).items():
        review = review.without(paths, reason)
    log.info("%s: %s.", option, in_words(review.counts, printable(Path(file).name)))
    for path, reason in list(review.unused.items())[:NAMED]:
        log.warning("%s: the row of %s is not used, because it %s.", option, printable(path), reason)
    if len(review.unused) > NAMED:
        log.warning("%s: … and %d more rows are not used.", option, len(review.unused) - NAMED)
    return review


def in_words(counts: Mapping[str, int], file: str = "review.csv") -> str:
    """Say what a review has done.

    >>> in_words({"keep": 1, "relabel": 2, "unused": 3})
    'review.csv has decisions on 6 photos: 1 kept, 0 left out, 2 with another label, 3 not used'
    """
    said = {KEEP: "kept", EXCLUDE: "left out", RELABEL: "with another label"}
    parts = [f"{counts.get(action, 0):,} {words}" for action, words in said.items()]
    parts += [f"{counts[UNUSED]:,} not used"] if counts.get(UNUSED) else []
    return f"{file} has decisions on {plural(sum(counts.values()), 'photo')}: {', '.join(parts)}"


def mend(decoded: DecodedPhotos, review: Review, name: str) -> tuple[DecodedPhotos, list[LeftOut]]:
    """Do with photos as a review says.

    Args:
        decoded: the photos.
        review: the decisions.
        name: of its file, for the reasons.

    Returns:
        The photos that take part, with their new labels, and those left out by the review.
    """
    excluded, labels = set(review.paths(EXCLUDE)), review.relabelled
    mended = decoded.without(excluded)
    photos = [Photo(photo.path, labels.get(photo.path, photo.label)) for photo in mended.photos]
    left_out = [LeftOut(path, f"a person left it out in {name}", REVIEWED) for path in sorted(excluded)]
    return replace(mended, photos=photos), left_out

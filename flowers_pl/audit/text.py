"""The findings of an audit in words, for the screen and for the page, and the photos to leave out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from flowers_pl.audit.findings import MISNAMED, PIXELS, UNLIKE, UNREADABLE, Duplicates, Findings
from flowers_pl.core.text import printable
from flowers_pl.data.folder import LeftOut
from flowers_pl.data.reviews import in_words

HARMLESS = (MISNAMED, "animated", "small", "elongated")  # worth knowing, but no reason to leave a photo out


class Entry(NamedTuple):
    """A line of a report: photos, and what there is to say about them."""

    paths: Sequence[str]
    text: str


class Section(NamedTuple):
    """Findings of one kind; `meaning` tells a reader what to make of them, and `asks` whether to decide."""

    title: str
    meaning: str
    entries: list[Entry]
    asks: bool = False


def sections(findings: Findings) -> list[Section]:
    """Return the sections of a report in their order, without empty ones."""
    every = [
        Section("Unreadable files", "Training leaves them out.", _faults(findings, UNREADABLE)),
        Section(
            "One photo in several classes",
            "At most one of the labels is right. Training leaves all copies out.",
            _duplicates(copies for copies in findings.duplicates if len(copies.classes) > 1),
            asks=True,
        ),
        Section(
            "Suspect labels",
            "Models that never saw these photos are sure of another class. These suspicions are often wrong,"
            " so look at each photo. The worst come first.",
            _suspects(findings),
            asks=True,
        ),
        Section(
            "Unlike any class",
            "Far from all other photos: perhaps not a flower, perhaps an unusual picture of one.",
            _faults(findings, UNLIKE),
            asks=True,
        ),
        *(
            Section(kind.capitalize(), "Little can be seen.", _faults(findings, kind), asks=True)
            for kind in PIXELS
        ),
        Section(
            "Duplicates within a class",
            "They belong on the same side of a split.",
            _duplicates(copies for copies in findings.duplicates if len(copies.classes) == 1),
            asks=True,
        ),
        *(
            Section(
                f"Duplicates on both sides of the split {printable(name)}",
                "Training has seen these validation photos, which makes validation results too good.",
                [Entry(paths, "") for paths in groups],
            )
            for name, groups in findings.straddling.items()
        ),
        Section(
            "Look-alikes",
            "Not duplicates, but probably the same flower photographed twice. A split may separate them.",
            [Entry(pair.paths, f"cosine {pair.cosine:.3f}") for pair in findings.look_alikes],
        ),
        Section(
            "Misnamed files", "They are read all the same, by their contents.", _faults(findings, MISNAMED)
        ),
        Section("Animated pictures", "Only the first frame is used.", _faults(findings, "animated")),
        Section("Small photos", "They are enlarged.", _faults(findings, "small")),
        Section("Elongated photos", "They are squashed.", _faults(findings, "elongated")),
    ]
    return [section for section in every if section.entries]


def _faults(findings: Findings, kind: str) -> list[Entry]:
    return [Entry([fault.path], fault.detail) for fault in findings.faults if fault.kind == kind]


def _duplicates(duplicates: Iterable[Duplicates]) -> list[Entry]:
    return [
        Entry(copies.paths, "the same pixels" if copies.exact else "nearly the same") for copies in duplicates
    ]


def _suspects(findings: Findings) -> list[Entry]:
    return [
        Entry(
            [suspect.path],
            f"{suspect.given} {suspect.given_probability:.0%}, rather {suspect.likely}"
            f" {suspect.likely_probability:.0%}",
        )
        for suspect in (findings.labels.suspects if findings.labels else [])
    ]


def summary(findings: Findings) -> list[str]:
    """Return what holds for the folder as a whole, a line each: its size, its classes, then the rest."""
    num_files, num_photos = sum(findings.files.values()), sum(findings.readable.values())
    lines = [
        f"{printable(findings.root)}: {num_files} files in {len(findings.files)} class folders, {num_photos}"
        " of them photos.",
        *(
            f"  {printable(label):<20} {count:6} {count / max(num_photos, 1):6.1%}"
            for label, count in findings.readable.items()
        ),
    ]
    if len(findings.readable) > 1:
        lines.append(_imbalance(findings))
    if findings.widths:
        rotated = sum(count for orientation, count in findings.orientations.items() if orientation != "1")
        (narrow, width, wide), (low, height, high) = findings.widths, findings.heights
        lines += [
            f"Widths {narrow} to {wide}, median {width}; heights {low} to {high}, median {height} pixels.",
            f"Formats: {_counts(findings.formats)}. Modes: {_counts(findings.modes)}."
            f" Rotated by EXIF: {rotated or 'none'}.",
        ]
    if findings.strays:
        lines.append(f"Files beside the class folders, which no command reads: {len(findings.strays)}.")
    if findings.reviewed:
        lines.append(f"{in_words(findings.reviewed, 'The review')}. What it decided is not asked again.")
    straddling = ", ".join(f"{printable(name)} {len(groups)}" for name, groups in findings.straddling.items())
    lines.append(f"Groups of duplicates on both sides of a split: {straddling}.")
    return [*lines, *_labels(findings)]


def _imbalance(findings: Findings) -> str:
    counts = findings.readable
    small, large = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[small] == counts[large]:
        return "Imbalance: none."
    if not counts[small]:
        return f"Imbalance: {printable(large)} has photos, {printable(small)} has none."
    return (
        f"Imbalance: {printable(large)} has {findings.imbalance:.1f} times as many photos as"
        f" {printable(small)}."
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _labels(findings: Findings) -> Iterator[str]:
    check = findings.labels
    if check is None:
        yield f"Labels were not checked: {findings.unchecked}."
        return
    yield (
        f"Labels: cross-validation on frozen features agrees with {check.accuracy:.1%} of {check.photos};"
        f" {len(check.suspects)} are suspect, and an estimated {check.estimated_wrong:.0f} are wrong."
    )
    if left := [label for label in findings.readable if label not in check.classes]:
        yield f"Labels not checked, because there are too few photos: {', '.join(map(printable, left))}."


def report(findings: Findings, most: int | None = None) -> str:
    """Return the report as text.

    Args:
        findings: what to report.
        most: lines a section; None for all.
    """
    lines = summary(findings)
    for title, meaning, entries, _ in sections(findings):
        lines += ["", f"{title}: {len(entries)}. {meaning}"]
        for entry in entries[:most]:
            names = " = ".join(map(printable, entry.paths))
            lines.append(f"  {names}" + (f"  {printable(entry.text)}" if entry.text else ""))
        if most is not None and len(entries) > most:
            lines.append(f"  … and {len(entries) - most} more")
    return "\n".join(lines)


def to_leave_out(findings: Findings) -> list[LeftOut]:
    """Return the photos that a clean set would do without, each with its reasons, sorted.

    Unreadable ones, all copies of a photo in several classes, all but the first of duplicates within a class,
    suspect labels, and pictures in which little can be seen or that are unlike any class.
    """
    reasons: dict[str, list[str]] = {}
    for fault in findings.faults:
        if fault.kind not in HARMLESS:
            reasons.setdefault(fault.path, []).append(f"{fault.kind}: {fault.detail}")
    for copies in findings.duplicates:
        several = len(copies.classes) > 1
        for path in copies.paths if several else copies.paths[1:]:
            others = ", ".join(other for other in copies.paths if other != path)
            reasons.setdefault(path, []).append(
                f"stands under another class too: {others}"
                if several
                else f"the same photo as {copies.paths[0]}"
            )
    for entry in _suspects(findings):
        reasons.setdefault(entry.paths[0], []).append(f"suspect label: {entry.text}")
    return [LeftOut(path, "; ".join(why)) for path, why in sorted(reasons.items())]

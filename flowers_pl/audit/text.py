"""What an audit found, in words, for the screen and for the page; and which photos to leave out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from flowers_pl.audit.findings import MISNAMED, UNLIKE, UNREADABLE, Duplicates, Findings
from flowers_pl.core.text import printable
from flowers_pl.data.folder import LeftOut

PIXELS = ("too dark", "too bright", "nearly blank", "blurred")
HARMLESS = (MISNAMED, "animated", "small", "elongated")  # worth knowing, but no reason to leave a photo out


class Entry(NamedTuple):
    """A line of a report: photos, and what is to be said of them."""

    paths: Sequence[str]
    text: str


class Section(NamedTuple):
    """Findings of one kind; `meaning` tells a reader what to make of them."""

    title: str
    meaning: str
    entries: list[Entry]


def sections(found: Findings) -> list[Section]:
    """All sections in the order of a report, without those that have nothing to say."""
    all_of_them = [
        Section("Unreadable files", "Training leaves them out.", _faults(found, UNREADABLE)),
        Section(
            "One photo under several classes",
            "At most one of the labels is right. Training leaves all of them out.",
            _duplicates(one for one in found.duplicates if len(one.classes) > 1),
        ),
        Section(
            "Suspect labels",
            "Models that never saw them are sure of another class, often wrongly: look. The worst first.",
            _suspects(found),
        ),
        Section(
            "Unlike any class",
            "Far from all other photos: perhaps no flower, perhaps an unusual picture of one.",
            _faults(found, UNLIKE),
        ),
        *(Section(kind.capitalize(), "Little can be seen.", _faults(found, kind)) for kind in PIXELS),
        Section(
            "Duplicates within a class",
            "They belong on one side of a split.",
            _duplicates(one for one in found.duplicates if len(one.classes) == 1),
        ),
        *(
            Section(
                f"Duplicates on both sides of the split {printable(name)}",
                "The validation side knows them from training: its figures are too good.",
                [Entry(paths, "") for paths in groups],
            )
            for name, groups in found.straddling.items()
        ),
        Section(
            "Look-alikes",
            "No duplicates, but probably the same flower photographed twice; a split may part them.",
            [Entry(one.paths, f"cosine {one.cosine:.3f}") for one in found.look_alikes],
        ),
        Section(
            "Wrongly named files", "They are read by what is in them all the same.", _faults(found, MISNAMED)
        ),
        Section("Animated pictures", "Only the first frame is used.", _faults(found, "animated")),
        Section("Small photos", "They are enlarged.", _faults(found, "small")),
        Section("Elongated photos", "They are squashed.", _faults(found, "elongated")),
    ]
    return [section for section in all_of_them if section.entries]


def _faults(found: Findings, kind: str) -> list[Entry]:
    return [Entry([one.path], one.detail) for one in found.faults if one.kind == kind]


def _duplicates(some: Iterable[Duplicates]) -> list[Entry]:
    return [Entry(one.paths, "the same pixels" if one.exact else "nearly the same") for one in some]


def _suspects(found: Findings) -> list[Entry]:
    return [
        Entry(
            [one.path],
            f"{one.given} {one.given_probability:.0%}, rather {one.likely} {one.likely_probability:.0%}",
        )
        for one in (found.labels.suspects if found.labels else [])
    ]


def summary(found: Findings) -> list[str]:
    """What is so of the folder as a whole, a line each."""
    files, readable = sum(found.files.values()), sum(found.readable.values())
    lines = [
        f"{printable(found.root)}: {files} files in {len(found.files)} class folders, {readable} of them"
        " photos.",
        *(
            f"  {printable(label):<20} {count:6} {count / max(readable, 1):6.1%}"
            for label, count in found.readable.items()
        ),
    ]
    small, large = (pick(found.readable, key=found.readable.__getitem__) for pick in (min, max))
    if len(found.readable) > 1 and found.readable[small] == found.readable[large]:
        lines.append("Imbalance: none.")
    elif len(found.readable) > 1:
        ratio = f"{found.imbalance:.1f} times as many photos as" if found.readable[small] else "photos,"
        tail = f"{printable(small)}" + ("" if found.readable[small] else " has none")
        lines.append(f"Imbalance: {printable(large)} has {ratio} {tail}.")
    if found.widths:
        turned = sum(count for orientation, count in found.orientations.items() if orientation != "1")
        lines += [
            "Widths {} to {}, median {}; heights {} to {}, median {} pixels.".format(
                *(sizes[place] for sizes in (found.widths, found.heights) for place in (0, 2, 1))
            ),
            f"Formats: {_counts(found.formats)}. Modes: {_counts(found.modes)}."
            f" To be turned, by EXIF: {turned or 'none'}.",
        ]
    if found.strays:
        lines.append(f"Beside the class folders lie {len(found.strays)} files that no command reads.")
    parted = ", ".join(f"{printable(name)} {len(groups)}" for name, groups in found.straddling.items())
    lines.append(f"Groups of duplicates on both sides of a split: {parted}.")
    return [*lines, *_labels(found)]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _labels(found: Findings) -> Iterator[str]:
    check = found.labels
    if check is None:
        yield f"Labels were not checked: {found.unchecked}."
        return
    yield (
        f"Labels: cross-validation on frozen features agrees with {check.accuracy:.1%} of {check.photos};"
        f" {len(check.suspects)} are suspect, about {check.estimated_wrong:.0f} are wrong by estimate."
    )
    if left := [label for label in found.readable if label not in check.classes]:
        yield f"Not judged, for want of photos: {', '.join(map(printable, left))}."


def report(found: Findings, most: int | None = None) -> str:
    """The report as text.

    Args:
        found: what to tell.
        most: lines a section; None for all.
    """
    lines = summary(found)
    for title, meaning, entries in sections(found):
        lines += ["", f"{title}: {len(entries)}. {meaning}"]
        for entry in entries[:most]:
            names = " = ".join(map(printable, entry.paths))
            lines.append(f"  {names}" + (f"  {printable(entry.text)}" if entry.text else ""))
        if most is not None and len(entries) > most:
            lines.append(f"  … and {len(entries) - most} more")
    return "\n".join(lines)


def to_leave_out(found: Findings) -> list[LeftOut]:
    """The photos that a clean set would go without, each with its reasons, sorted.

    Unreadable ones, all that stand under several classes, all but the first of duplicates within a class,
    suspect labels, and pictures in which little is to be seen or that are unlike any class.
    """
    reasons: dict[str, list[str]] = {}
    for fault in found.faults:
        if fault.kind not in HARMLESS:
            reasons.setdefault(fault.path, []).append(f"{fault.kind}: {fault.detail}")
    for one in found.duplicates:
        several = len(one.classes) > 1
        for path in one.paths if several else one.paths[1:]:
            others = ", ".join(other for other in one.paths if other != path)
            reasons.setdefault(path, []).append(
                f"stands under another class too: {others}"
                if several
                else f"the same photo as {one.paths[0]}"
            )
    for entry in _suspects(found):
        reasons.setdefault(entry.paths[0], []).append(f"suspect label: {entry.text}")
    return [LeftOut(path, "; ".join(why)) for path, why in sorted(reasons.items())]

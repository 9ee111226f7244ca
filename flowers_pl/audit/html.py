"""The findings of an audit as one HTML page that needs nothing beside it: a person decides on them there and
saves review.csv."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowers_pl.audit.findings import Asked, Findings
from flowers_pl.audit.pictures import make_pictures
from flowers_pl.audit.text import Section, sections, summary
from flowers_pl.core.files import csv_text
from flowers_pl.core.text import printable
from flowers_pl.data.reviews import HEADER, Decision

ASKED = 5000  # findings that the page asks about; the rest are for the next audit, with --review
SIZE = 60_000_000  # bytes of the page at most
PAGE = 6_000_000  # of them for all but pictures
Shown = tuple[Section, int]
"""A section cut to what the page shows of it, and how many entries were left out."""


def render_page(findings: Findings, most: int, decisions: Sequence[Decision] = (), size: int = SIZE) -> str:
    """Render the page.

    Whatever a file is called, it is text there: the template escapes it, and the script, the only one that
    the page's policy allows, never makes markup of it.

    Args:
        findings: what to show.
        most: findings a section of those that ask for no decision; further ones are only counted.
        decisions: those of an earlier review, which are saved again with the new ones.
        size: bytes of the page at most, of which the pictures make use.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def escape_unprintable(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("flowers_pl", "audit"),
        autoescape=True,
        finalize=escape_unprintable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    shown = _cut(sections(findings), findings.asked, most)
    asking = [one for one in shown if one[0].asks]  # a photo that only another section shows has no buttons
    asked = list(dict.fromkeys(path for path in _paths(asking) if path in findings.asked))

    def others(number: int) -> list[str]:
        near = (findings.asked[path].neighbours.values() for path in asked)
        return [*_paths(shown), *(path for both in near for paths in both for path in paths[:number])]

    pictures, rung = make_pictures(Path(findings.root), asked, others, size - PAGE)
    listed = list(dict.fromkeys([*asked, *others(rung.neighbours)]))
    number_of = {path: number for number, path in enumerate(listed)}
    data = _data(findings, shown, asked, number_of, rung.neighbours, decisions)
    script, style = _read("decisions.js") + "\n" + _read("page.js"), _read("page.css")
    return environment.get_template("page.html.jinja").render(
        findings=findings,
        name=Path(findings.root).name,
        facts=summary(findings)[1 + len(findings.readable) :],
        largest=max(findings.readable.values()) or 1,
        script=Markup(script),
        style=Markup(style),
        policy={"script": _source(script), "style": _source(style)},
        data=Markup(json.dumps(data).replace("<", "\\u003c")),
        pictures={number_of[path]: Markup(text) for path, text in pictures.items()},
    )


def _read(name: str) -> str:
    return files("flowers_pl.audit").joinpath(name).read_text("utf-8")


def _source(content: str) -> str:
    """Name a script or style for a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _paths(shown: Iterable[Shown]) -> list[str]:
    return [path for section, _ in shown for entry in section.entries for path in entry.paths]


def _cut(every: Iterable[Section], asked: dict[str, Asked], most: int) -> list[Shown]:
    shown, room = [], ASKED
    for section in every:
        asks = section.asks and any(path in asked for entry in section.entries for path in entry.paths)
        kept = section.entries[: room if asks else most]
        room -= len(kept) if asks else 0
        shown.append((section._replace(entries=kept, asks=asks), len(section.entries) - len(kept)))
    return shown


def _data(
    findings: Findings,
    shown: Sequence[Shown],
    paths_asked: Sequence[str],
    number_of: dict[str, int],
    neighbours: int,
    decisions: Sequence[Decision],
) -> dict[str, Any]:
    """Return what the script works on: photos and classes by number, texts printable, cells as in a CSV."""
    asked = {path: findings.asked[path] for path in paths_asked}
    classes = list(findings.readable)
    number = {label: index for index, label in enumerate(classes)}
    suspects = {one.path: number[one.likely] for one in findings.labels.suspects} if findings.labels else {}

    def photo(path: str) -> dict[str, Any]:
        known = {"name": printable(path)}
        if path not in asked:
            return known
        of_class = asked[path].neighbours.items()
        return known | {
            "cell": csv_text(path),
            "sha256": asked[path].sha256,
            "label": number[asked[path].label],
            "likely": suspects.get(path, -1),
            "near": [
                [number[label], [number_of[one] for one in paths[:neighbours]]] for label, paths in of_class
            ],
        }

    questions = json.dumps([[path, known.sha256] for path, known in asked.items()])
    return {
        "key": f"flowers_pl audit {hashlib.sha256(questions.encode()).hexdigest()}",
        "header": HEADER,
        "classes": [{"name": printable(label), "cell": csv_text(label)} for label in classes],
        "photos": [photo(path) for path in number_of],
        "sections": [
            {
                "title": section.title,
                "meaning": section.meaning,
                "asks": section.asks,
                "more": more,
                "entries": [
                    [[number_of[path] for path in paths], printable(text)] for paths, text in section.entries
                ],
            }
            for section, more in shown
        ],
        "earlier": [[csv_text(cell) for cell in decision] for decision in decisions],
    }

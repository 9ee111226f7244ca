"""What an audit found, as one HTML page that needs nothing beside it: pictures are inside, nothing is run."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from flowers_pl.audit.findings import Findings, LabelCheck
from flowers_pl.audit.text import Entry, Section, sections, summary
from flowers_pl.core.text import printable
from flowers_pl.data.decoding import UnreadablePhoto, read_photo, resize_photo

SIDE = 160  # pixels of a thumbnail's longer side

# No script, no form, nothing loaded from anywhere, whatever a file is called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light dark; --line: #8884; --card: #8881; --accent: #b3446c; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem; }
h2 span, nav span { color: var(--accent); font-weight: 600; }
p { margin: .2rem 0 .8rem; } .meaning, figcaption small { opacity: .75; }
nav ul { columns: 3 16rem; padding-left: 1.1rem; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { padding: .2rem .6rem; border: 1px solid var(--line); text-align: right; }
th:first-child { text-align: left; }
meter { width: 14rem; }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; align-items: flex-start; }
.card { border: 1px solid var(--line); background: var(--card); border-radius: 6px; padding: .5rem; }
.photos { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; width: 160px; }
figure img, .none { width: 160px; height: 160px; object-fit: contain; display: block; }
.none { display: grid; place-items: center; border: 1px dashed var(--line); box-sizing: border-box; }
figcaption { font-size: .75rem; overflow-wrap: anywhere; user-select: all; }
.text { font-size: .85rem; font-weight: 600; margin: .3rem 0 0; max-width: 160px; }
"""


def page(found: Findings, most: int) -> str:
    """The page.

    Args:
        found: what to tell.
        most: cards a section; the rest is counted, and is in audit.json.
    """
    root, told = Path(found.root), sections(found)
    body = [
        f"<h1>Photos in {_safe(found.root)}</h1>",
        *(f"<p>{_safe(line)}</p>" for line in summary(found)[1 + len(found.readable) :]),
        _classes(found),
        _joint(found.labels) if found.labels else "",
        "<nav><ul>",
        *(
            f'<li><a href="#s{place}">{_safe(one.title)}</a> <span>{len(one.entries)}</span></li>'
            for place, one in enumerate(told)
        ),
        "</ul></nav>",
        *(_section(one, place, most, _Thumbnails(root)) for place, one in enumerate(told)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Audit of {_safe(root.name)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _safe(text: str) -> str:
    return escape(printable(text))


def _classes(found: Findings) -> str:
    largest = max(found.readable.values()) or 1
    rows = "".join(
        f"<tr><th>{_safe(label)}</th><td>{count}</td><td>{found.files[label] - count}</td>"
        f'<td><meter value="{count}" max="{largest}"></meter></td></tr>'
        for label, count in found.readable.items()
    )
    return f"<table><tr><th>class</th><th>photos</th><th>unreadable</th><th></th></tr>{rows}</table>"


def _joint(check: LabelCheck) -> str:
    """The estimated joint distribution of given and true labels."""
    head = "".join(f"<th>{_safe(label)}</th>" for label in check.classes)
    rows = "".join(
        f"<tr><th>{_safe(label)}</th>" + "".join(f"<td>{count:.1f}</td>" for count in counts) + "</tr>"
        for label, counts in zip(check.classes, check.estimated_joint, strict=True)
    )
    return (
        "<h2>Which classes are taken for which</h2><p class=meaning>Rows: the given label; columns: the true"
        " one, as confident learning estimates it; photos.</p>"
        f"<table><tr><th></th>{head}</tr>{rows}</table>"
    )


def _section(section: Section, place: int, most: int, thumbnail: Callable[[str], str]) -> str:
    cards = "".join(_card(entry, thumbnail) for entry in section.entries[:most])
    more = len(section.entries) - most
    return (
        f'<section id="s{place}"><h2>{_safe(section.title)} <span>{len(section.entries)}</span></h2>'
        f'<p class="meaning">{_safe(section.meaning)}</p><div class="cards">{cards}</div>'
        + (f"<p>… and {more} more, in audit.txt and audit.json.</p>" if more > 0 else "")
        + "</section>"
    )


def _card(entry: Entry, thumbnail: Callable[[str], str]) -> str:
    photos = "".join(
        f"<figure>{thumbnail(path)}<figcaption>{_safe(path)}</figcaption></figure>" for path in entry.paths
    )
    text = f'<p class="text">{_safe(entry.text)}</p>' if entry.text else ""
    return f'<div class="card"><div class="photos">{photos}</div>{text}</div>'


class _Thumbnails:
    """Small pictures of photos below `root`, as data URIs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, path: str) -> str:
        try:
            photo = read_photo(self.root / path)
        except UnreadablePhoto:
            return '<div class="none">no picture</div>'
        height, width = photo.shape[1:]
        scale = min(1.0, SIDE / max(height, width))
        small = resize_photo(photo, (max(1, round(height * scale)), max(1, round(width * scale))))
        stream = BytesIO()
        Image.fromarray(small.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=75)
        data = base64.b64encode(stream.getvalue()).decode()
        return f'<img alt="" src="data:image/jpeg;base64,{data}">'

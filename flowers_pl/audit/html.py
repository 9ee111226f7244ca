"""The findings of an audit as one HTML page that needs nothing beside it: it contains the pictures and runs
nothing."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from flowers_pl.audit.findings import Findings
from flowers_pl.audit.text import sections, summary
from flowers_pl.core.text import printable
from flowers_pl.data.decoding import UnreadablePhoto, read_photo, resize_photo

THUMBNAIL = 160  # pixels of its longer side


def render_page(findings: Findings, most: int) -> str:
    """Render the page; the template escapes whatever a file is called.

    Args:
        findings: what to show.
        most: cards a section; further ones are only counted, and are in audit.json.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def thumbnail(path: str) -> Markup:
        return Markup(_thumbnail(Path(findings.root, path)))

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
    return environment.get_template("page.html.jinja").render(
        findings=findings,
        name=Path(findings.root).name,
        facts=summary(findings)[1 + len(findings.readable) :],
        largest=max(findings.readable.values()) or 1,
        sections=sections(findings),
        most=most,
        thumbnail=thumbnail,
    )


def _thumbnail(file: Path) -> str:
    """Return a small copy of a photo as a data URI, or "" where it cannot be read."""
    try:
        photo = read_photo(file)
    except UnreadablePhoto:
        return ""
    height, width = photo.shape[1:]
    scale = min(1.0, THUMBNAIL / max(height, width))
    small = resize_photo(photo, (max(1, round(height * scale)), max(1, round(width * scale))))
    stream = BytesIO()
    Image.fromarray(small.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"

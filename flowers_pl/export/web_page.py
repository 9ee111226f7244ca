"""Write the folder of a page that classifies pictures in the visitor's browser, on any host of files."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from flowers_pl.core.errors import FlowersError, reason_of
from flowers_pl.core.files import replacing
from flowers_pl.core.text import printable
from flowers_pl.data.drawings import draw_flower
from flowers_pl.explain.figures import HEAT

MODEL, FACTS, WORKER = "model.onnx", "model.json", "service-worker.js"
ICONS = {"icon-192.png": 192, "icon-512.png": 512}  # pixels a side, as browsers want them for installing
PAGE = Path(__file__).parent / "web"


def page_facts(
    name: str,
    classes: list[str],
    image_size: int,
    accuracy: float | None,
    judged_on: str | None,
    version: str,
) -> dict[str, Any]:
    """Return what the page says of its model, and the colours of its heat maps.

    Args:
        name: of the run.
        classes: class names, in the order of the outputs.
        image_size: pixels a side of what the network sees.
        accuracy: share of photos that it classified correctly; None where that was not measured.
        judged_on: which photos these were, in words; None likewise.
        version: of flowers_pl.
    """
    from matplotlib import colormaps

    table = colormaps[HEAT](range(256), bytes=True)[:, :3]
    return {
        "name": printable(name),
        "classes": [printable(one) for one in classes],
        "image_size": image_size,
        "accuracy": accuracy,
        "judged_on": judged_on,
        "version": version,
        "colours": table.tobytes().hex(),
    }


def write_page(folder: Path, model: bytes, facts: Mapping[str, Any], runtime: Mapping[str, bytes]) -> int:
    """Write the page; the service worker last, by which browsers notice that there is a new one.

    Args:
        folder: where it goes; other files there are kept.
        model: an ONNX file that `export_explained` wrote.
        facts: what `page_facts` returned.
        runtime: what `web_runtime` returned.

    Returns:
        The size of all files, in bytes.

    Raises:
        FlowersError: a file cannot be written.
    """
    pages = {file.name: file.read_bytes() for file in sorted(PAGE.iterdir()) if file.name != WORKER}
    files = {**pages, **runtime, **{name: _icon(size) for name, size in ICONS.items()}}
    facts = {**facts, "sha256": hashlib.sha256(model).hexdigest()}
    files |= {FACTS: json.dumps(facts).encode(), MODEL: model}
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    worker = (PAGE / WORKER).read_text(encoding="utf-8").replace("$VERSION", digest.hexdigest()[:16])
    integrity = {
        name: f"sha256-{b64encode(hashlib.sha256(files[name]).digest()).decode()}" for name in (FACTS, MODEL)
    }
    worker = worker.replace("$FILES", json.dumps(["./", *files])).replace("$INTEGRITY", json.dumps(integrity))
    files[WORKER] = worker.encode()
    try:
        for name, content in files.items():
            with replacing(folder / name) as unfinished:
                unfinished.write_bytes(content)
    except OSError as error:
        raise FlowersError(
            f"--out: {str(folder)!r} cannot be written ({reason_of(error)}); free some space or choose"
            " another folder."
        ) from error
    return sum(map(len, files.values()))


def _icon(size: int) -> bytes:
    stream = BytesIO()
    draw_flower("sunflower", 1, size).quantize(64).save(stream, "PNG", optimize=True)
    return stream.getvalue()

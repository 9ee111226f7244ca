"""A folder of drawings, replaced as a whole and only where no other file would be lost, or a download."""

import json
import logging
import re
from pathlib import Path

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replacing_folder
from flowers_pl.core.paths import check_writable
from flowers_pl.core.text import printable
from flowers_pl.data.download import download_flower_photos
from flowers_pl.data.drawings import KINDS, VERSION, draw_flower
from flowers_pl.packs.roots import is_remote

log = logging.getLogger(__name__)
_MARKER = ".drawn.json"


def obtain_photos(root: Path, drawn: int, seed: int, size: int) -> None:
    """Draw photos into a folder, or download them where it is the default one and missing.

    Args:
        root: the folder of class folders.
        drawn: number of drawings of each kind; 0 for photos.
        seed: which drawings.
        size: width and height of a drawing in pixels.

    Raises:
        FlowersError: as `write_drawings` and `download_flower_photos` do.
    """
    if is_remote(root):
        return
    if drawn:
        write_drawings(root, drawn, seed, size)
        log.info("%s holds drawings, not photos: %d of each kind.", root, drawn)
    elif not root.exists() and root.absolute() == Path("data/flowers").absolute():
        download_flower_photos(root)


def write_drawings(root: Path, per_class: int, seed: int = 0, size: int = 96) -> None:
    """Write `per_class` drawings of each kind to `root/<kind>/<kind>_0000.png` and so on.

    The folder appears complete or not at all. A folder that holds exactly these drawings is left as it is;
    one that holds other drawings, and nothing else, is replaced.

    Args:
        root: the folder to make.
        per_class: number of drawings of each kind.
        seed: which drawings, from 0 up; two seeds share none (below a million drawings of a kind).
        size: width and height in pixels.

    Raises:
        FlowersError: `root` holds something that this function has not written, or cannot be written.
    """
    root = root.resolve()
    marker = json.dumps({"per_class": per_class, "seed": seed, "size": size, "version": VERSION}) + "\n"
    if (root / _MARKER).is_file() and (root / _MARKER).read_bytes() == marker.encode():
        return
    _refuse_foreign_files(root)
    check_writable(root.parent, "--data.root")
    with replacing_folder(root) as unfinished:
        for kind in KINDS:
            (unfinished / kind).mkdir()
            for index in range(per_class):
                path = unfinished / kind / f"{kind}_{index:04d}.png"
                draw_flower(kind, seed * 1_000_000 + index, size).save(path, compress_level=1)
        (unfinished / _MARKER).write_text(marker, encoding="utf-8")


def _refuse_foreign_files(root: Path) -> None:
    """Raise FlowersError if `root` holds anything that `write_drawings` has not written."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    way_out = "choose another folder for the drawings, or an empty one"
    if not (root / _MARKER).is_file():
        raise FlowersError(f"{printable(str(root))} holds files that are not drawings; {way_out}.")
    own = re.compile(rf"{re.escape(_MARKER)}|({'|'.join(KINDS)})(/\1_\d{{4,}}\.png)?")
    for path in sorted(root.rglob("*")):
        if not own.fullmatch(path.relative_to(root).as_posix()):
            raise FlowersError(f"{printable(str(path))} is not a drawing, so its folder is kept; {way_out}.")

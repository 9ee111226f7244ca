"""Pictures for every epoch, drawn with Pillow: plainer than those of `figures.py`, and far cheaper.

matplotlib takes 0.18 s for a confusion matrix of 5 classes, 0.8 s for one of 20 and 0.6 s for 16 photos (one
core of an EPYC, Zen 4), and an epoch may take less than a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

LINE = 16  # pixels from one line of text to the next
GAP = 6
RED, GREEN, BLACK = "#B22222", "#006400", "#000000"
CELLS = ((8, 52), (40, 30), (200, 12), (10**9, 2))  # up to so many classes: pixels a side


class Captioned(NamedTuple):
    """A picture with what stands below it.

    Args:
        pixels: uint8 (H, W, 3), RGB; all of a sheet have one size.
        lines: of text; what is wider than the picture is cut.
        colour: of the text.
    """

    pixels: np.ndarray
    lines: Sequence[str]
    colour: str = BLACK


def matrix_sheet(matrix: np.ndarray, classes: Sequence[str], title: str) -> np.ndarray:
    """A confusion matrix: blue by share of the row, with the counts up to 40 classes.

    Columns are headed by the numbers of the classes, which stand beside the names of the rows.

    Args:
        matrix: int (classes, classes), a row for each truth.
        classes: names, in that order.
        title: above it.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    count, cell = len(classes), next(cell for most, cell in CELLS if len(classes) <= most)
    shares = matrix / np.maximum(matrix.sum(1), 1)[:, None]
    blues = (255 * colormaps["Blues"](shares)[..., :3]).round().astype(np.uint8)
    names = [f"{name[:30]} {place}" for place, name in enumerate(classes, 1)] if cell >= 12 else []
    left = GAP + max((round(_font().getlength(name)) + GAP for name in names), default=0)
    top = 3 * LINE
    width = max(left + cell * count + GAP, round(_font().getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (width, top + cell * count + GAP), "white")
    sheet.paste(Image.fromarray(blues.repeat(cell, 0).repeat(cell, 1)), (left, top))
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, LINE // 2), title, "lm")
    middles = [cell * place + cell // 2 for place in range(count)]
    for place, name in enumerate(names):
        _write(draw, (left - GAP, top + middles[place]), name, "rm")
        if cell > 20:
            _write(draw, (left + middles[place], top - LINE // 2), str(place + 1), "mm")
    if cell > 20:
        for row, column in np.argwhere(matrix):
            colour = "white" if shares[row, column] > 0.6 else BLACK
            _write(draw, (left + middles[column], top + middles[row]), str(matrix[row, column]), "mm", colour)
    return np.asarray(sheet)


def photo_sheet(pictures: Sequence[Captioned], title: str, columns: int = 4) -> np.ndarray:
    """Pictures in rows, their captions below them.

    Args:
        pictures: any number; none too.
        title: above them.
        columns: pictures a row.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    high, wide = pictures[0].pixels.shape[:2] if pictures else (0, 0)
    below = LINE * max((len(one.lines) for one in pictures), default=0) + GAP
    rows, across = -(-len(pictures) // columns), min(len(pictures), columns)
    least = round(_font().getlength(title)) + 2 * GAP
    size = (max(across * (wide + GAP) + GAP, least), 2 * LINE + rows * (high + below + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, LINE), title, "lm")
    for place, one in enumerate(pictures):
        x, y = GAP + place % columns * (wide + GAP), 2 * LINE + place // columns * (high + below + GAP)
        sheet.paste(Image.fromarray(one.pixels), (x, y))
        for line, text in enumerate(one.lines):
            _write(draw, (x, y + high + LINE * line + LINE // 2 + 2), _fitted(text, wide), "lm", one.colour)
    return np.asarray(sheet)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str, colour: str = BLACK
) -> None:
    draw.text(place, text, fill=colour, font=_font(), anchor=anchor)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font of the figures, which comes with matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 12)


def _fitted(text: str, width: int) -> str:
    """A text cut to so many pixels."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"

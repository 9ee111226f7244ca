"""Fonts for names in any script: those of the system where matplotlib's own lacks a letter."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from flowers_pl.core.text import JOINERS

log = logging.getLogger(__name__)
BOXES = "Last Resort"  # matplotlib's font of boxes, which claims to have every letter
SUGGESTED = (  # up to which code point: the font, and its Debian package
    (0x1100, "Noto Sans (fonts-noto-core)"),
    (0x1200, "Noto Sans CJK (fonts-noto-cjk)"),
    (0x2190, "Noto Sans (fonts-noto-core)"),
    (0x2E80, "Symbola (fonts-symbola)"),
    (0xA4D0, "Noto Sans CJK (fonts-noto-cjk)"),
    (0xAC00, "Noto Sans (fonts-noto-core)"),
    (0xD7B0, "Noto Sans CJK (fonts-noto-cjk)"),
    (0xF900, "Noto Sans (fonts-noto-core)"),
    (0xFB00, "Noto Sans CJK (fonts-noto-cjk)"),
    (0xFE30, "Noto Sans (fonts-noto-core)"),
    (0xFFF0, "Noto Sans CJK (fonts-noto-cjk)"),
    (0x1F000, "Noto Sans (fonts-noto-core)"),
    (0x20000, "Symbola (fonts-symbola)"),
    (0x110000, "Noto Sans CJK (fonts-noto-cjk)"),
)
_reported: set[str] = set()  # fonts that were named as missing


class FontedFigure(Figure):
    """A figure whose texts are drawn in fonts that have their letters, where the system has such fonts."""

    def draw(self, renderer: Any) -> None:
        """Choose the fonts, then draw."""
        texts = [text for text in self.findobj(Text) if isinstance(text, Text)]
        letters = {letter for text in texts for letter in text.get_text() if not letter.isascii()}
        families, lacking = find_fonts("".join(sorted(letters - set(JOINERS) - {"\n"})))
        if families:
            every = ["sans-serif", *families]
            for text in texts:
                text.set_fontfamily(every)
            for axes in self.axes:
                axes.tick_params(labelfontfamily=every)
        _report(lacking)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")  # it is said once, by `_report`
            super().draw(renderer)


@cache
def find_fonts(letters: str) -> tuple[tuple[str, ...], str]:
    """Find fonts of the system that have letters which matplotlib's sans-serif font lacks.

    Args:
        letters: each once.

    Returns:
        Names of font families, few of them, and the letters that no font has.
    """
    lacking = set(letters) - _letters_of(
        font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))
    )
    if not lacking:
        return (), ""
    _add_new_fonts()
    files: dict[str, str] = {}
    for entry in font_manager.fontManager.ttflist:
        regular = entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        if regular and not entry.name.startswith(BOXES):
            files.setdefault(entry.name, str(entry.fname))
    had = {family: _letters_of(file) & lacking for family, file in sorted(files.items())}
    families: list[str] = []
    while any(had.values()):
        best = max(had, key=lambda family: len(had[family]))
        families.append(best)
        lacking -= had[best]
        had = {family: letters & lacking for family, letters in had.items()}
    return tuple(families), "".join(sorted(lacking))


def _add_new_fonts() -> None:
    """Add fonts that were installed after matplotlib listed them."""
    known = {str(entry.fname) for entry in font_manager.fontManager.ttflist}
    for file in font_manager.findSystemFonts():
        if file not in known:
            try:
                font_manager.fontManager.addfont(file)
            except Exception as error:  # emoji in colours, damaged files: each raises an error of its own
                log.debug("%s is not used: %s", file, error)


@cache
def _letters_of(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError) as error:
        log.debug("%s is not used: %s", file, error)
        return frozenset()


def _report(lacking: str) -> None:
    font_of = {letter: next(font for end, font in SUGGESTED if ord(letter) < end) for letter in lacking}
    new = [letter for letter in lacking if font_of[letter] not in _reported]
    if new:
        fonts = {font_of[letter] for letter in new}
        _reported.update(fonts)
        shown = "".join(new[:20]) + ("…" if len(new) > 20 else "")
        log.warning(
            "No font here has %s, so figures show boxes; install %s.", shown, " and ".join(sorted(fonts))
        )

"""Text that is shown or written: names made printable, bytes escaped, counts with their nouns."""

from __future__ import annotations

import re
import unicodedata

JOINERS = "\u200c\u200d"  # invisible, but parts of emoji and of words in Persian and Indic scripts


def printable(name: str) -> str:
    r"""Escape what a screen, a picture or a page cannot show as it is.

    Control characters, marks that turn the writing direction and bytes that are not UTF-8 become escapes.

    >>> print(printable("rose\n.jpg"), printable("latin \udce8.jpg"))
    rose\n.jpg latin \xe8.jpg
    """
    return "".join(
        letter if letter.isprintable() or letter in JOINERS else _escape(letter) for letter in name
    )


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8 (surrogateescape)
        return rf"\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def escape_bytes(text: str) -> str:
    r"""Write bytes that are not UTF-8 as \xNN and a backslash twice; `unescape_bytes` undoes it.

    >>> print(escape_bytes("latin \udce8\\.jpg"))
    latin \xe8\\.jpg
    """
    return re.sub("[\udc80-\udcff]", lambda found: _escape(found[0]), text.replace("\\", "\\\\"))


def unescape_bytes(text: str) -> str:
    r"""Undo `escape_bytes`; a single backslash, as version 0.1.0 wrote it, is left alone.

    >>> unescape_bytes(r"latin \xe8\\.jpg") == "latin \udce8\\.jpg"
    True
    """

    def unescape(found: re.Match[str]) -> str:
        return "\\" if found[1] == "\\" else chr(0xDC00 + int(found[1][1:], 16))

    return re.sub(r"\\(\\|x[89a-f][0-9a-f])", unescape, text)


def text_width(text: str) -> int:
    """Count the columns that a text takes on a terminal: East Asian letters take two, accents none.

    >>> text_width("rose"), text_width("玫瑰")
    (4, 4)
    """
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) in ("Mn", "Cf") for letter in text)


def plural(number: int, noun: str) -> str:
    """Name a number of things.

    >>> plural(1, "photo"), plural(2000, "photo")
    ('1 photo', '2,000 photos')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

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
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8, as `surrogateescape` holds it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


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


CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
"""What may drive a terminal or turn the writing direction; not tabs and line ends, which tables quote."""


def escape_bytes(text: str) -> str:
    r"""Write bytes that are not UTF-8 (as `surrogateescape` holds them) as `\xNN`, and double backslashes.

    Control characters are written so too, as `\xNN` below 128 and as `\uNNNN` above.

    >>> print(escape_bytes("latin \udce8.jpg"), escape_bytes("a\\b"), escape_bytes("\x1b[31m\u202e"))
    latin \xe8.jpg a\\b \x1b[31m\u202e
    """

    def escape(letter: re.Match[str]) -> str:
        return f"\\u{ord(letter[0]):04x}" if "\x7f" < letter[0] < "\udc80" else _escape(letter[0])

    return re.sub(f"[\udc80-\udcff{CONTROLS}]", escape, text.replace("\\", "\\\\"))


def unescape_bytes(text: str) -> str:
    r"""Return what `escape_bytes` was given; a backslash that it did not write stays as it is.

    >>> unescape_bytes(escape_bytes("latin \udce8\\x41.jpg")) == "latin \udce8\\x41.jpg"
    True
    """

    def original(escape: re.Match[str]) -> str:
        if not (escape[1] or escape[2]):
            return "\\"
        number = int(escape[1] or escape[2], 16)
        letter = chr(0xDC00 + number if escape[1] and number > 0x7F else number)
        return letter if escape_bytes(letter) == escape[0] else escape[0]

    return re.sub(r"\\\\|\\x([0-9a-f]{2})|\\u([0-9a-f]{4})", original, text)


def nfc(name: str) -> str:
    """Compose letters and marks, so that names compare equal as they look equal (Unicode's form NFC).

    >>> nfc("Ga\u0308nseblu\u0308mchen") == "G\u00e4nsebl\u00fcmchen"
    True
    """
    return unicodedata.normalize("NFC", name)

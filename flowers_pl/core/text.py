"""Text that is shown: file names made printable, counts with their nouns."""

from __future__ import annotations

import re


def printable(name: str) -> str:
    r"""Escape what a screen, a picture or a page cannot show as it is.

    Control characters, marks that turn the writing direction and bytes that are not UTF-8 become escapes.

    >>> printable("rose\n.jpg")
    'rose\\n.jpg'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name
    )


def plural(number: int, noun: str) -> str:
    """Name a number of things.

    >>> plural(1, "photo"), plural(2000, "photo")
    ('1 photo', '2,000 photos')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def escape_bytes(text: str) -> str:
    r"""Write bytes that are not UTF-8 (as `surrogateescape` holds them) as `\xNN`, and double backslashes.

    >>> print(escape_bytes("latin \udce8.jpg"), escape_bytes("a\\b"))
    latin \xe8.jpg a\\b
    """
    doubled = text.replace("\\", "\\\\")
    return re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", doubled)


def unescape_bytes(text: str) -> str:
    r"""Return what `escape_bytes` was given; a backslash that it did not write stays as it is.

    >>> unescape_bytes(escape_bytes("latin \udce8\\x41.jpg")) == "latin \udce8\\x41.jpg"
    True
    """

    def original(escape: re.Match[str]) -> str:
        return chr(0xDC00 + int(escape[1], 16)) if escape[1] else "\\"

    return re.sub(r"\\\\|\\x([89a-f][0-9a-f])", original, text)

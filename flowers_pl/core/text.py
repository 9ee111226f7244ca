"""Text that is shown: file names made printable, counts with their nouns."""

from __future__ import annotations


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

"""Texts that go into messages: cut to what a reader takes in, and always one line."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

LINE = 500
"""Characters that a message about a file may have."""

_ONE_OF = {"boxes": "box", "batches": "batch", "losses": "loss", "classes": "class", "categories": "category"}

_brief = reprlib.Repr()  # stops early, where repr runs through all of a nested or endless value
_brief.maxlevel = 4
_brief.maxstring = _brief.maxother = _brief.maxlong = 400


def quote(value: object, most: int = 60) -> str:
    """Return the ``repr`` of a value, cut to what fits a line; a long text or number keeps its end too."""
    try:
        text = _brief.repr(value)
    except ValueError:  # a whole number of more digits than Python converts
        text = f"a number of type {type(value).__name__} with thousands of digits"
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """Shorten a text to at most so many characters; ``...`` stands for the end that was cut off."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def few(names: Sequence[object], most: int = 3) -> str:
    """Return the first of many names, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")


def counted(count: int, what: str) -> str:
    """Write a number and what it counts, given in the plural: ``1 box dropped`` for ``boxes dropped``."""
    if count != 1:
        return f"{count:,} {what}"
    words = what.split(" ")
    noun = next(at for at, word in enumerate(words) if word.endswith("s"))
    words[noun] = _ONE_OF.get(words[noun], words[noun].removesuffix("s"))
    return " ".join(["1", *words])


def printable(text: str, keep: str = "") -> str:
    """Escape what does not print: control characters, halves of surrogate pairs, marks that turn the line.

    Args:
        text: any text.
        keep: characters that stay all the same, such as line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = LINE) -> str:
    """Escape what does not print, such as line ends, and cut a long text in its middle."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most * 3 // 5]} ... {text[-(most * 2 // 5 - 5) :]}"

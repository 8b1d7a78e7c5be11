"""A recognised folder: a reader for each part of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from defeat.types import Annotations

Part = Literal["train", "val", "test"]
Reader = Callable[..., Annotations]
"""It takes ``classes``, ``on_error`` and ``root``, as the data module gives them."""

_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")


class Layout(NamedTuple):
    """A folder as it was recognised."""

    name: str
    """What it is called in messages, such as ``COCO JSON``."""
    readers: Mapping[Part, Reader]
    """One for each part; what is not divided is the part ``train``."""
    places: Mapping[Part, str]
    """Where the annotations of each part lie, relative to the root."""


def part_of(name: str) -> Part | None:
    """Return the part that the name of a file or folder stands for: ``instances_val2017`` is ``val``."""
    parts = {_WORDS[word] for word in _WORD.findall(name.lower())}
    return parts.pop() if len(parts) == 1 else None

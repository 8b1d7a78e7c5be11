"""Pieces of the Python file that loads a student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Code(NamedTuple):
    """Python source."""

    imports: set[str]
    lines: list[str]
    """Statements that leave the detector in ``detector``."""
    classes: str = ""
    """Definitions of classes."""


def joined(parts: Sequence[Code]) -> Code:
    """Put pieces one after the other."""
    imports = {line for part in parts for line in part.imports}
    lines = [line for part in parts for line in part.lines]
    return Code(imports, lines, "".join(part.classes for part in parts))

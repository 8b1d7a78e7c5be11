"""LaTeX of the documentation as MathML, which browsers draw by themselves, without a script or a network."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def mathml(source: str, *_: Any, **__: Any) -> str:
    """Format a ``math`` block for pymdownx.superfences, which passes more than the text."""
    return f'<div class="math">{convert(source.strip(), display="block")}</div>'

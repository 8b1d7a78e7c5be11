"""An extension of Griffe: Sphinx's roles, as docstrings have them, become plain code on the API pages."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstrings of what Griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_code, obj.docstring.value)


def _code(role: re.Match[str]) -> str:
    """Show the full name, or behind ``~`` its last part alone."""
    return f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`"

"""An extension of Griffe, by which the API pages link what docstrings name, such as ``:class:`~defeat.distill.Term```."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Turn Sphinx's roles into references of mkdocs-autorefs, and into plain code where no page has the object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_code, obj.docstring.value)


def _code(role: re.Match[str]) -> str:
    """``defeat.distill.Term`` for its full name, ``Term`` for ``~defeat.distill.Term``."""
    name = role[2].rpartition(".")[2] if role[1] else role[2]
    return f"`{name}`"

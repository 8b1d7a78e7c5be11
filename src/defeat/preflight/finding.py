"""The result of a check: facts, problems, and what to do about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from defeat.errors import DefeatError
from defeat.types import Problem as Problem

Result = Literal["ok", "warning", "tolerated", "failed"]

CHECKS = (
    "weights",
    "classes",
    "normalisation",
    "resize",
    "padding",
    "levels",
    "frozen",
    "data",
    "teacher",
    "losses",
    "gradients",
    "optimizer",
    "cost",
)
"""The names of all checks, in the order of the report."""


class PreflightError(DefeatError):
    """A check before the training failed; the message names each cause and its remedy."""


class Finding(NamedTuple):
    """The outcome of one check."""

    check: str
    """One of :data:`CHECKS`."""
    summary: str
    """The facts, in a few words."""
    problems: Sequence[Problem] = ()
    figures: Mapping[str, float | None] = {}
    """The facts that are numbers, for programs; None where there was nothing to measure."""
    tolerated: bool = False

    @property
    def result(self) -> Result:
        """The worst of the problems."""
        if any(problem.severe for problem in self.problems):
            return "tolerated" if self.tolerated else "failed"
        return "warning" if self.problems else "ok"

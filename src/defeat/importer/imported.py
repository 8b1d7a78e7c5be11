"""A detector that was converted, and what was done to its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from defeat.render import Table


class Row(NamedTuple):
    """One thing that was done."""

    step: str
    """``read``, ``mapped``, ``folded``, ``permuted``, ``dropped``, ``set`` or ``not checked``."""
    tensors: int | None
    """The number of tensors that it concerns; None where it concerns none."""
    what: str


class Imported(NamedTuple):
    """A detector of another framework in torchvision's terms."""

    tensors: dict[str, Tensor]
    """Under torchvision's names, whole: what ``model`` builds loads them strictly."""
    classes: list[str]
    """K class names, label 1 first."""
    model: dict[str, Any]
    """The builder as ``_target_``, and those arguments that make it compute the same."""
    rows: list[Row]
    """What was done."""


def report_table(rows: Sequence[Row]) -> Table:
    """Lay out what was mapped, folded, permuted and dropped, and what could not be checked."""
    cells = [(row.step, row.what, row.tensors) for row in rows]
    return Table(("step", "what", "tensors"), cells, text_columns=2)

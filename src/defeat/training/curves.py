"""Logged values in their order, small enough for every checkpoint."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.loggers import Logger


class Curves:
    """Rows of named values, each logged at a step.

    Most rows have the same names, so names are kept once for each set of them: a value takes 8 bytes.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, ...], int] = {}
        self._kinds = array("q")
        self._steps = array("q")
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, row: Mapping[str, float], step: int) -> None:
        """Append a row."""
        self._kinds.append(self._names.setdefault(tuple(row), len(self._names)))
        self._steps.append(step)
        self._values.extend(row.values())

    def __iter__(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and row, in the order they were added."""
        names = list(self._names)
        first = 0
        for kind, step in zip(self._kinds, self._steps, strict=True):
            after = first + len(names[kind])
            yield step, dict(zip(names[kind], self._values[first:after], strict=True))
            first = after

    def before(self, step: int) -> Curves:
        """The rows of the steps before ``step``."""
        kept = Curves()
        for at, row in self:
            if at < step:
                kept.add(row, at)
        return kept

    def replay(self, logger: Logger) -> None:
        """Tell a logger all rows."""
        for step, row in self:
            whole = {"epoch": int(row["epoch"])} if "epoch" in row else {}  # as Lightning logs it
            logger.log_metrics({**row, **whole}, step=step)

    def to_plain(self) -> dict[str, Any]:
        """Tensors and lists, for a checkpoint."""
        return {
            "names": [list(names) for names in self._names],
            "kinds": torch.tensor(self._kinds, dtype=torch.int64),
            "steps": torch.tensor(self._steps, dtype=torch.int64),
            "values": torch.tensor(self._values, dtype=torch.float64),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], renamed: Callable[[str], str] = str) -> Curves:
        """The reverse of :meth:`to_plain`, with names as ``renamed`` makes them."""
        curves = cls()
        rows: list[list[str]] = plain["names"]
        curves._names = {tuple(map(renamed, names)): kind for kind, names in enumerate(rows)}
        curves._kinds = array("q", plain["kinds"].tolist())
        curves._steps = array("q", plain["steps"].tolist())
        curves._values = array("d", plain["values"].tolist())
        return curves

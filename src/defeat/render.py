"""Tables of text and figures, for the terminal, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

Cell = str | int | float | None

_NO_STYLES: Mapping[str, str] = MappingProxyType({})


class Table(NamedTuple):
    """A table. None and nan are shown as "-", and are empty cells in CSV."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """A text may have several lines."""
    title: str = ""
    note: str = ""
    text_columns: int = 1
    """Number of columns on the left that hold text; the others hold figures and are aligned to the right."""

    def as_rich(self, styles: Mapping[str, str] = _NO_STYLES) -> RichTable:
        """Render for :func:`rich.print`. Texts are folded where the terminal is narrow, figures never are.

        Args:
            styles: text of a cell to the style of that cell.
        """
        rendered = RichTable(
            title=Text(self.title) if self.title else None,
            caption=Text(self.note) if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE,
            collapse_padding=True,
            pad_edge=False,
        )
        rows = [[_text(cell) for cell in row] for row in self.rows]
        for i, name in enumerate(self.columns):
            if i < self.text_columns:
                rendered.add_column(Text(name), overflow="fold")
            else:
                width = max((len(line) for row in rows for line in row[i].splitlines()), default=0)
                rendered.add_column(Text(name), justify="right", overflow="fold", min_width=width)
        for row in rows:
            rendered.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
        return rendered

    def as_markdown(self) -> str:
        """Write the lines of the table, without title and note."""
        rules = ["---" if i < self.text_columns else "--:" for i in range(len(self.columns))]
        cells = [[escape_markdown(_text(cell)) for cell in row] for row in (self.columns, *self.rows)]
        return "".join(f"| {' | '.join(row)} |\n" for row in (cells[0], rules, *cells[1:]))

    def as_csv(self) -> str:
        """Write a line for the names of the columns and one for each row, figures in full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if _is_missing(cell) else cell for cell in row] for row in self.rows)
        return text.getvalue()


def escape_markdown(text: str) -> str:
    """Put a text on one line, without anything that Markdown would take for its own."""
    return re.sub(r"([\\`*<|])", r"\\\1", text.replace("\n", " "))


def decimals(value: float, digits: int = 3) -> str:
    """Write a figure with so many decimals, "-" for nan."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _text(cell: Cell) -> str:
    return "-" if _is_missing(cell) else str(cell)


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))

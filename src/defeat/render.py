"""Tables of text and figures, for the terminal, in Markdown and as CSV.

Texts may come from anybody, as the names of classes do. What a terminal, Markdown, HTML or a spreadsheet
would take for its own is escaped here, and nowhere else.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from defeat.io.text import printable

Cell = str | int | float | None

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|")
"""Beginnings of a cell by which spreadsheets know a formula, or skip to one."""

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
            title=Text(_text(self.title)) if self.title else None,
            caption=Text(_text(self.note)) if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE,
            collapse_padding=True,
            pad_edge=False,
        )
        rows = [[_text(cell) for cell in row] for row in self.rows]
        for i, name in enumerate(self.columns):
            if i < self.text_columns:
                rendered.add_column(Text(_text(name)), overflow="fold")
            else:
                width = max((len(line) for row in rows for line in row[i].splitlines()), default=0)
                rendered.add_column(Text(_text(name)), justify="right", overflow="fold", min_width=width)
        for row in rows:
            rendered.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
        return rendered

    def as_markdown(self) -> str:
        """Write the lines of the table, without title and note."""
        rules = ["---" if i < self.text_columns else "--:" for i in range(len(self.columns))]
        cells = [[escape_markdown(_text(cell)) for cell in row] for row in (self.columns, *self.rows)]
        return "".join(f"| {' | '.join(row)} |\n" for row in (cells[0], rules, *cells[1:]))

    def as_csv(self) -> str:
        """Write a line for the names of the columns and one for each row, figures in full precision.

        A text that a spreadsheet would take for a formula gets an apostrophe before it.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([_csv_cell(cell) for cell in row] for row in (self.columns, *self.rows))
        return text.getvalue()


def escape_markdown(text: str) -> str:
    """Put a text on one line, without anything that Markdown would take for its own.

    A ``_`` inside of a word stands for itself.
    """
    line = printable(text.replace("\n", " "))
    return re.sub(r"[\\`*<>|\[\]~$&]|^#|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a text as it is on one line, which is there to be copied and so never wrapped.

    Args:
        console: where to print.
        text: any text; what does not print is escaped, and nothing in it is markup.
        style: of rich.
    """
    console.print(Text(printable(text), style=style), soft_wrap=True)


def decimals(value: float, digits: int = 3) -> str:
    """Write a figure with so many decimals, "-" for nan."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _text(cell: Cell) -> str:
    return "-" if _is_missing(cell) else printable(str(cell), keep="\n")


def _csv_cell(cell: Cell) -> str | int | float:
    if cell is None or isinstance(cell, int | float):
        return "" if cell is None or _is_missing(cell) else cell
    text = printable(cell, keep="\n")
    return f"'{text}" if cell.startswith(FORMULA) else text


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))

"""A report for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from defeat.report.compare import Comparison
from defeat.report.tables import Sheet, class_sheets, sheets, wrap

_FEW_CLASSES = 12  # more of them are left to Markdown and CSV
_LABEL = 16  # characters that are left for groups beside classes
_CLASS = 10  # characters of a class in one line
_GAP = 2  # between columns


def print_report(comparison: Comparison, console: Console) -> None:
    """Print all tables.

    Names of groups, which can be long and are to be copied, stand unbroken above them; in the tables each has
    the number that it has there.
    """
    short = {}
    for number, of in enumerate(comparison.groups, start=1):
        short[of.group.label] = f"{number} {of.group.runs[0].name}"
        role = "baseline" if of.group is comparison.baseline else "group"
        console.print(f"{role:<9} {number}  {escape(of.group.label)}", soft_wrap=True, highlight=False)
    for warning in comparison.warnings:
        console.print(f"[yellow]warning[/]      {escape(warning)}", soft_wrap=True, highlight=False)
    shown = sheets(comparison)
    if len(comparison.classes) <= _FEW_CLASSES:
        width = max(5, *(min(len(name), _CLASS) for name in comparison.classes))
        shown += class_sheets(comparison, max(1, (console.width - _LABEL) // (width + _GAP)))
    for sheet in shown:
        console.print(_table(sheet, short, console.width))


def _table(sheet: Sheet, short: Mapping[str, str], width: int) -> Table:
    table = Table(
        title=escape(sheet.title),
        caption=escape(sheet.note),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    lengths = [_longest(sheet, i) for i in range(1, len(sheet.header))]
    left = max(8, width - sum(length + _GAP for length in lengths) - _GAP)
    table.add_column(escape(sheet.header[0]), overflow="fold")
    for name, length in zip(sheet.header[1:], lengths, strict=True):
        table.add_column(escape(name), justify="right", overflow="fold", min_width=length)
    for name, *cells in sheet.rows:
        table.add_row(escape(wrap(short.get(name, name), left)), *map(escape, cells))
    return table


def _longest(sheet: Sheet, column: int) -> int:
    """Longest line of a column, up to a name that may be broken."""
    cells = [line for row in sheet.rows for line in row[column].splitlines()]
    return max(*map(len, cells), min(len(sheet.header[column]), _CLASS))

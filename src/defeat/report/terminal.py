"""A report for the terminal."""

from __future__ import annotations

from rich.console import Console

from defeat.render import print_line
from defeat.report.compare import Comparison
from defeat.report.tables import class_table, group_tables

_MAX_CLASSES, _MAX_GROUPS = 12, 8  # tables of more classes or groups are left to Markdown and CSV


def print_report(comparison: Comparison, console: Console) -> None:
    """Print all tables.

    Labels of groups, which can be long and are to be copied, stand unbroken above the tables, each with the
    number that it has in them.
    """
    short = {}
    for number, group in enumerate(comparison.groups, start=1):
        short[group.label] = f"{number} {group.group.runs[0].name}"
        role = "baseline" if group.group is comparison.baseline else "group"
        print_line(console, f"{role:<9} {number}  {group.label}")
    for warning in comparison.warnings:
        print_line(console, f"warning      {warning}", "yellow")
    for table in group_tables(comparison):
        rows = [[short[str(label)], *cells] for label, *cells in table.rows]
        console.print(table._replace(rows=rows).as_rich())
    if len(comparison.classes) <= _MAX_CLASSES and len(comparison.groups) <= _MAX_GROUPS:
        numbers = map(str, range(1, len(comparison.groups) + 1))
        console.print(class_table(comparison)._replace(columns=["class", "objects", *numbers]).as_rich())

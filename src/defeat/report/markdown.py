"""A report in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from defeat import __version__
from defeat.render import Table, escape_markdown
from defeat.report.compare import Comparison
from defeat.report.tables import class_table, group_tables, run_table, settings


def markdown(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> str:
    """Write a report.

    Args:
        comparison: its content.
        pictures: title and file name of each.
    """
    return "\n\n".join(_paragraphs(comparison, pictures)) + "\n"


def _paragraphs(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    runs = sum(len(group.runs) for group in comparison.groups)
    baseline = escape_markdown(comparison.baseline.label)
    yield f"# {runs} runs in {len(comparison.groups)} groups"
    yield (
        f"{comparison.images} images, {sum(comparison.objects.values())} objects to find, "
        f"{len(comparison.classes)} classes. Baseline: {baseline}. Made by defeat {__version__}."
    )
    if comparison.warnings:
        yield "\n".join(f"- **Warning:** {escape_markdown(warning)}" for warning in comparison.warnings)
    for table in (*group_tables(comparison), class_table(comparison)):
        yield from _section(table)
    for title, name in pictures:
        yield from (f"## {title}", f"![{title}]({name})")
    if unlike := settings(comparison):
        yield f"## Settings unlike those of {baseline}"
        yield "\n".join(
            f"- {escape_markdown(label)}: {escape_markdown(', '.join(values)) or 'none'}"
            for label, values in unlike.items()
        )
    yield from _section(run_table(comparison))


def _section(table: Table) -> Iterator[str]:
    yield f"## {escape_markdown(table.title)}"
    if table.note:
        yield escape_markdown(table.note)
    yield table.as_markdown().rstrip("\n")

"""A report in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from defeat import __version__
from defeat.report.compare import Comparison
from defeat.report.tables import Sheet, class_sheet, figure, settings, sheets


def markdown(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> str:
    """Write a report.

    Args:
        comparison: its content.
        pictures: title and file name of each.
    """
    return "\n".join(_lines(comparison, pictures)) + "\n"


def _lines(comparison: Comparison, pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    runs = sum(len(of.runs) for of in comparison.groups)
    yield f"# {runs} runs in {len(comparison.groups)} groups"
    yield ""
    yield (
        f"{comparison.images} images, {sum(comparison.objects.values())} objects to find, "
        f"{len(comparison.classes)} classes. Baseline: {_text(comparison.baseline.label)}. "
        f"Made by defeat {__version__}."
    )
    if comparison.warnings:
        yield ""
        yield from (f"- **Warning:** {_text(warning)}" for warning in comparison.warnings)
    for sheet in (*sheets(comparison), class_sheet(comparison)):
        yield from _table(sheet)
    for title, name in pictures:
        yield from ("", f"## {title}", "", f"![{title}]({name})")
    unlike = settings(comparison)
    if unlike:
        yield from ("", f"## Settings unlike those of {_text(comparison.baseline.label)}", "")
        for label, found in unlike.items():
            yield f"- {_text(label)}: {_text(', '.join(found)) or 'none'}"
    yield from _table(_runs(comparison))


def _runs(comparison: Comparison) -> Sheet:
    return Sheet(
        "Runs",
        "",
        ["folder", "group", "seed", "step", "AP"],
        [
            [
                str(of_run.run.folder),
                of.group.label,
                str(of_run.run.seed),
                str(of_run.run.detections.step),
                figure(of_run.coco["AP"]),
            ]
            for of in comparison.groups
            for of_run in of.runs
        ],
    )


def _table(sheet: Sheet) -> Iterator[str]:
    yield from ("", f"## {_text(sheet.title)}", "")
    if sheet.note:
        yield from (_text(sheet.note), "")
    yield _row(sheet.header)
    yield _row(["---", *["--:"] * (len(sheet.header) - 1)])
    yield from map(_row, sheet.rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(text: str) -> str:
    """One line, without what Markdown would take for its own."""
    return re.sub(r"([\\`*<|])", r"\\\1", text.replace("\n", " "))

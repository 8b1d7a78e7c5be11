"""Findings on the terminal, in Markdown and in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from defeat.io.text import counted, printable
from defeat.preflight.finding import Finding
from defeat.render import Table, escape_markdown

COLOURS: dict[str, str] = {"ok": "green", "warning": "yellow", "tolerated": "yellow", "failed": "red"}


def title(findings: Sequence[Finding], seconds: float) -> str:
    """One line: how many checks, how many of them failed or warn, how long it took."""
    results = [finding.result for finding in findings]
    bad = [f"{results.count(word)} {word}" for word in ("failed", "tolerated") if word in results]
    if "warning" in results:
        bad.append(counted(results.count("warning"), "warnings"))
    return f"Pre-flight: {len(findings)} checks, {', '.join(bad) or 'all ok'}, {seconds:.1f} s"


def show(findings: Sequence[Finding], seconds: float, console: Console) -> None:
    """Print a table, and under it the cause and the remedy of all that is not in order."""
    console.print(_table(findings, seconds).as_rich(COLOURS), highlight=False)
    for finding in findings:
        for problem in finding.problems:
            colour = COLOURS[finding.result if problem.severe else "warning"]
            console.print(Text.assemble((finding.check, colour), f": {printable(problem.cause)}"))
            console.print(Text(f"  remedy: {printable(problem.remedy)}"))


def write(findings: Sequence[Finding], seconds: float, folder: Path) -> None:
    """Write ``preflight.json`` and ``preflight.md`` into a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(findings, seconds), indent=2) + "\n"
    (folder / "preflight.json").write_text(text, encoding="utf-8")
    (folder / "preflight.md").write_text("\n".join(_markdown(findings, seconds)) + "\n", encoding="utf-8")


def as_json(findings: Sequence[Finding], seconds: float) -> dict[str, object]:
    """All of it in plain containers."""
    return {
        "seconds": round(seconds, 3),
        "checks": {
            finding.check: {
                "result": finding.result,
                "summary": finding.summary,
                "problems": [problem._asdict() for problem in finding.problems],
                "figures": dict(finding.figures),
            }
            for finding in findings
        },
    }


def _table(findings: Sequence[Finding], seconds: float) -> Table:
    rows = [(finding.check, finding.result, finding.summary) for finding in findings]
    return Table(("check", "result", "summary"), rows, title(findings, seconds), text_columns=3)


def _markdown(findings: Sequence[Finding], seconds: float) -> Iterator[str]:
    table = _table(findings, seconds)
    yield from (f"# {table.title}", "", table.as_markdown().rstrip())
    for finding in findings:
        for problem in finding.problems:
            cause, remedy = escape_markdown(problem.cause), escape_markdown(problem.remedy)
            yield from ("", f"**{finding.check}**: {cause}.", "", f"Remedy: {remedy}.")

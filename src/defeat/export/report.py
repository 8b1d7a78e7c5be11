"""What an export ended with: ``export.md``, and the same tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from defeat.export.card import cost_table
from defeat.export.check import Check
from defeat.export.speed import Speed
from defeat.export.student import TrainedStudent
from defeat.render import Table, escape_markdown


class Exported(NamedTuple):
    """Files, and what was found on them."""

    student: TrainedStudent
    folder: Path
    files: dict[str, Path]
    """Format to its main file."""
    checks: dict[str, list[Check]]
    """Format to what it was compared by; empty where nothing was to be checked."""
    speed: Speed | None
    sentence: str | None
    """The student beside its teacher."""
    notes: list[str]
    """What was left out, and why."""

    @property
    def passed(self) -> bool:
        """Whether no comparison has failed."""
        return all(check.passed for checks in self.checks.values() for check in checks)


def files_table(exported: Exported) -> Table:
    """The files with their sizes, and how many comparisons they have passed."""
    rows = [
        (form, path.name, f"{path.stat().st_size / 2**20:.2f}", _result(exported.checks.get(form)))
        for form, path in exported.files.items()
    ]
    return Table(("format", "file", "MiB", "comparisons with the student"), rows, text_columns=2)


def _result(checks: Sequence[Check] | None) -> str:
    if not checks:
        return "not compared"
    passed = sum(check.passed for check in checks)
    return f"{passed} of {len(checks)} passed"


def checks_table(checks: Mapping[str, Sequence[Check]]) -> Table:
    """All comparisons."""
    rows = [
        (form, check.name, "passed" if check.passed else "FAILED", check.note, *_differences(check))
        for form, of_format in checks.items()
        for check in of_format
    ]
    columns = ("format", "compared", "result", "of", "boxes, px", "scores")
    return Table(columns, rows, text_columns=4)


def _differences(check: Check) -> Iterator[str]:
    for value in (check.boxes, check.scores):
        text = "0" if value == 0 else f"{value:.1e}"
        yield "other set" if math.isinf(value) else "-" if math.isnan(value) else text


def markdown(exported: Exported) -> str:
    """The text of ``export.md``."""
    return "\n\n".join(_paragraphs(exported)) + "\n"


def _paragraphs(exported: Exported) -> Iterator[str]:
    name = (exported.student.config or {}).get("name")
    yield f"# Export of {escape_markdown(str(name))}"
    yield f"From {escape_markdown(exported.student.source.name)}, SHA-256 {exported.student.sha256}."
    yield files_table(exported).as_markdown().rstrip()
    if exported.checks:
        yield "## Compared with the student in PyTorch"
        yield (
            "The largest difference of a box's coordinate and of a score, where the detections are the same "
            "set. Weights have to agree to the bit, graphs within 0.5 pixels and 0.001."
        )
        yield checks_table(exported.checks).as_markdown().rstrip()
    if exported.speed is not None:
        yield f"## {escape_markdown(exported.speed.table().title)}"
        yield exported.speed.table().as_markdown().rstrip()
        yield cost_table(exported.speed).as_markdown().rstrip()
    if exported.sentence:
        yield exported.sentence
    if exported.notes:
        yield "\n".join(f"- {escape_markdown(note)}" for note in exported.notes)

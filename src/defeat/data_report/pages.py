"""A data report as Markdown, JSON and pictures, and the tables of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from defeat.data.class_checks import count_boxes
from defeat.data_report.collect import DataReport, SplitReport
from defeat.io.atomic_write import write_text
from defeat.io.text import counted
from defeat.render import Table, escape_markdown
from defeat.visual.contact_sheet import contact_sheet
from defeat.visual.histograms import plot_classes, plot_sizes


def write_report(report: DataReport, folder: Path) -> None:
    """Write check.md, check.json, a contact sheet of each split, classes.png and sizes.png."""
    pictures = dict(_draw(report, folder))
    write_text(folder / "check.json", json.dumps(as_json(report), indent=2) + "\n")
    write_text(folder / "check.md", "\n".join(_markdown(report, pictures)) + "\n")


def overview(report: DataReport) -> Table:
    """Count images and boxes of each split."""
    rows = [
        (name, len(s.annotations.records), _empty(s), int(count_boxes(s.annotations).sum()), _ignored(s))
        for name, s in report.splits.items()
    ]
    return Table(("split", "images", "without objects", "boxes", "boxes to ignore"), rows)


def class_table(report: DataReport) -> Table:
    """Count the boxes of each class in each split."""
    counts = [count_boxes(split.annotations).tolist() for split in report.splits.values()]
    classes = next(iter(report.splits.values())).annotations.classes
    rows = [(name, *(column[i] for column in counts)) for i, name in enumerate(classes)]
    return Table(("class", *report.splits), rows)


def level_table(report: DataReport) -> Table:
    """Count the boxes of each pyramid level in each split."""
    first = next(iter(report.splits.values())).sizes
    columns = [split.sizes.counts for split in report.splits.values()]
    borders = ["", *(f"{border:.0f}" for border in first.borders)]
    ends = [*(f"{border:.0f}" for border in first.borders), ""]
    names = [
        f"stride {stride}, {low or 0} px and more"
        if not high
        else f"stride {stride}, {low or 0} to {high} px"
        for stride, low, high in zip(first.strides, borders, ends, strict=True)
    ]
    rows: list[tuple[str | int, ...]] = [
        (name, *values) for name, *values in zip(names, *columns, strict=True)
    ]
    tiny = [split.sizes.tiny for split in report.splits.values()]
    cell = first.strides[0]
    rows.append((f"of these smaller than a cell of {cell} x {cell} px", *tiny))
    return Table(("objects after the resize", *report.splits), rows)


def as_json(report: DataReport) -> dict[str, Any]:
    """Return all of it in plain containers."""
    return {
        "fails": report.fails,
        "problems": [{"split": located.split, **located.problem._asdict()} for located in report.problems],
        "splits": {name: _split_json(split) for name, split in report.splits.items()},
    }


def _split_json(split: SplitReport) -> dict[str, Any]:
    annotations = split.annotations
    counts = count_boxes(annotations).tolist()
    return {
        "source": annotations.source,
        "images": len(annotations.records),
        "images_without_objects": _empty(split),
        "boxes": sum(counts),
        "boxes_to_ignore": _ignored(split),
        "boxes_of_class": dict(zip(annotations.classes, counts, strict=True)),
        "boxes_of_stride": dict(zip(map(str, split.sizes.strides), split.sizes.counts, strict=True)),
        "boxes_below_a_cell": split.sizes.tiny,
        "changed": annotations.counts,
        "decoded": len(split.pictures.positions),
        "undecodable": list(split.pictures.errors.values()),
    }


def _draw(report: DataReport, folder: Path) -> Iterator[tuple[str, str]]:
    """Draw what there is to draw; yields title and file name."""
    with_objects = {name: s for name, s in report.splits.items() if count_boxes(s.annotations).any()}
    for name, split in with_objects.items():
        contact_sheet(split.annotations, folder / f"contact_sheet_{name}.png", name)
        yield f"Pictures of {name}, by class", f"contact_sheet_{name}.png"
    if with_objects:
        counts = {name: count_boxes(split.annotations) for name, split in with_objects.items()}
        classes = next(iter(with_objects.values())).annotations.classes
        plot_classes(classes, counts, folder / "classes.png")
        yield "Boxes of each class", "classes.png"
        sizes = {name: split.sizes for name, split in with_objects.items()}
        first = next(iter(sizes.values()))
        sides = {name: size.sides for name, size in sizes.items()}
        plot_sizes(sides, first.strides, first.borders, folder / "sizes.png")
        yield "Sizes after the resize", "sizes.png"


def _markdown(report: DataReport, pictures: dict[str, str]) -> Iterator[str]:
    yield from ("# Data", "", "A training would fail." if report.fails else "A training can begin.", "")
    yield from ("## Findings", "")
    for located in report.problems:
        kind = "error" if located.problem.severe else "warning"
        cause, remedy = escape_markdown(located.problem.cause), escape_markdown(located.problem.remedy)
        yield f"- **{kind}**, {located.split}: {cause}: {remedy}"
    if not report.problems:
        yield "Nothing."
    if report.splits:
        yield from ("", "## Splits", "", overview(report).as_markdown())
        for name, split in report.splits.items():
            changed = (
                ", ".join(counted(n, reason) for reason, n in split.annotations.counts.items()) or "nothing"
            )
            yield f"- {name}, {escape_markdown(split.annotations.source)}: changed {changed}; "
            yield f"  {len(split.pictures.positions)} pictures decoded"
        yield from ("", "## Classes", "", class_table(report).as_markdown())
        yield from ("## Sizes", "", level_table(report).as_markdown())
    for title, file in pictures.items():
        yield from (f"## {title}", "", f"![{title}]({file})", "")


def _empty(split: SplitReport) -> int:
    return sum(bool(record.ignore.all()) for record in split.annotations.records)


def _ignored(split: SplitReport) -> int:
    return sum(int(record.ignore.sum()) for record in split.annotations.records)

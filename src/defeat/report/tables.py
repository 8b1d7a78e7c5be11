"""The tables of a report, as text in cells: the terminal and Markdown show the same ones."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from defeat.report.bootstrap import FIGURES
from defeat.report.compare import Comparison, GroupFigures
from defeat.report.groups import setting_differences
from defeat.report.statistics import Estimate
from defeat.report.student_cost import DEFINITION
from defeat.report.tide import KINDS, SPECIAL

SIZES = ("APs", "APm", "APl")


class Sheet(NamedTuple):
    """A table; the first column is text, the others are figures."""

    title: str
    note: str
    """What the figures are."""
    header: list[str]
    rows: list[list[str]]
    """A cell may have several lines."""


def sheets(comparison: Comparison) -> list[Sheet]:
    """All tables but that of classes, whose shape depends on where it is shown."""
    shown = [_figures(comparison), _differences(comparison), _gains(comparison), _counts(comparison)]
    return [*(sheet for sheet in shown if sheet.rows), _groups(comparison)]


def _figures(comparison: Comparison) -> Sheet:
    return Sheet(
        "COCO figures",
        f"Last validation of each run, {comparison.images} images. Mean over seeds ± half of the 95% "
        "interval of Student's t.",
        ["group", "seeds", *FIGURES],
        [
            [of.group.label, str(len(of.runs)), *(over_seeds(of.coco[name]) for name in FIGURES)]
            for of in comparison.groups
        ],
    )


def _differences(comparison: Comparison) -> Sheet:
    rows = []
    for of in comparison.groups:
        if of.difference is not None:
            cells = [_interval(of.difference[name].estimate) for name in ("AP", *SIZES)]
            rows.append([of.group.label, cells[0], _percent(of.difference["AP"].ahead), *cells[1:]])
    return Sheet(
        f"Difference to {comparison.baseline.label}",
        "Of the means over seeds, with the 95% percentile interval of a paired bootstrap over images "
        f"({comparison.resamples} resamples, seed {comparison.seed}), and the share of resamples in which AP "
        "is ahead. It holds the runs fixed: it says how far other images could change the difference of "
        "these runs, not how far other seeds could.",
        ["group", "AP", "ahead", *SIZES],
        rows,
    )


def _gains(comparison: Comparison) -> Sheet:
    return Sheet(
        "What errors cost",
        "AP50 that correcting one kind of error alone would gain (TIDE, Bolya et al. 2020; IoU 0.5 and 0.1): "
        "wrong class, bad localisation, both, duplicate, background, missed. Mean over seeds ± half of the "
        "95% interval of Student's t.",
        ["group", "AP50", *KINDS],
        [
            [of.group.label, over_seeds(of.coco["AP50"]), *(over_seeds(of.gains[kind]) for kind in KINDS)]
            for of in comparison.groups
        ],
    )


def _counts(comparison: Comparison) -> Sheet:
    return Sheet(
        "How many errors",
        "Mean over seeds of how many there are of each kind, and of all false positives and false negatives.",
        ["group", *KINDS, *SPECIAL],
        [
            [of.group.label, *(f"{of.counts[kind].value:.0f}" for kind in (*KINDS, *SPECIAL))]
            for of in comparison.groups
        ],
    )


def _groups(comparison: Comparison) -> Sheet:
    return Sheet(
        "Training and cost",
        f"FLOPs: {DEFINITION}.",
        ["group", "seeds", "steps", "parameters", "FLOPs", "image"],
        [
            [of.group.label, _listed(of.group.seeds), _listed(of.group.steps), *_cost(of)]
            for of in comparison.groups
        ],
    )


def class_sheet(comparison: Comparison) -> Sheet:
    """AP by class, a row for each class."""
    return Sheet(
        "AP by class",
        "Mean over seeds; objects is the ground truth to find.",
        ["class", "objects", *(of.group.label for of in comparison.groups)],
        [
            [
                name,
                str(comparison.objects[name]),
                *(figure(of.per_class[name].value) for of in comparison.groups),
            ]
            for name in comparison.classes
        ],
    )


def class_sheets(comparison: Comparison, columns: int) -> list[Sheet]:
    """AP by class, a row for each group and at most ``columns`` classes a table."""
    tables = math.ceil(len(comparison.classes) / columns)
    columns = math.ceil(len(comparison.classes) / tables)
    parts = [comparison.classes[i * columns : (i + 1) * columns] for i in range(tables)]
    return [
        Sheet(
            "AP by class" + (f" ({i} of {tables})" if tables > 1 else ""),
            "Mean over seeds." if i == tables else "",
            ["group", *part],
            [
                [of.group.label, *(figure(of.per_class[name].value) for name in part)]
                for of in comparison.groups
            ],
        )
        for i, part in enumerate(parts, start=1)
    ]


def settings(comparison: Comparison) -> dict[str, list[str]]:
    """For each group but the baseline: its settings unlike the baseline's, as ``key=value (not value)``."""
    base = comparison.baseline.config
    return {
        of.group.label: [
            f"{difference.key}={difference.values[1]} (not {difference.values[0]})"
            for difference in setting_differences([base, of.group.config])
        ]
        for of in comparison.groups
        if of.group is not comparison.baseline
    }


def wrap(name: str, width: int) -> str:
    """Break a long name into lines after its dots, commas and the like, and words after a _ if need be."""
    lines = [""]
    words = re.findall(r".+?(?:[., /-]|$)", name)
    for piece in (
        part for word in words for part in ([word] if len(word) <= width else re.split(r"(?<=_)", word))
    ):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def figure(value: float) -> str:
    """Three decimals, "-" for nan."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def over_seeds(estimate: Estimate) -> str:
    """Mean, and half of the interval on a line of its own."""
    if math.isnan(estimate.low):
        return figure(estimate.value)
    return f"{estimate.value:.3f}\n±{estimate.high - estimate.value:.3f}"


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    return f"{_signed(estimate.value)}\n{_signed(estimate.low)}..{_signed(estimate.high)}"


def _signed(value: float) -> str:
    """Without the leading zero: four such intervals stand side by side."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _cost(figures: GroupFigures) -> list[str]:
    cost = figures.cost
    if cost is None:
        return ["-", "-", "-"]
    return [f"{cost.parameters / 1e6:.2f} M", f"{cost.flops / 1e9:.2f} G", f"{cost.height} x {cost.width}"]

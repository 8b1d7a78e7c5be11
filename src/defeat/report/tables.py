"""The tables of a report, as text in cells: the terminal and Markdown show the same ones."""

from __future__ import annotations

import math

from defeat.render import Cell, Table, decimals
from defeat.report.bootstrap import FIGURES
from defeat.report.compare import Comparison, GroupFigures
from defeat.report.groups import setting_differences
from defeat.report.statistics import Estimate
from defeat.report.student_cost import DEFINITION
from defeat.report.tide import KINDS, SPECIAL

SIZES = ("APs", "APm", "APl")


def group_tables(comparison: Comparison) -> list[Table]:
    """Make all tables that have a row for each group; those that would be empty are left out."""
    tables = [_figures(comparison), _differences(comparison), _gains(comparison), _counts(comparison)]
    return [*(table for table in tables if table.rows), _training(comparison)]


def _figures(comparison: Comparison) -> Table:
    rows = [
        [group.label, str(len(group.runs)), *(over_seeds(group.coco[name]) for name in FIGURES)]
        for group in comparison.groups
    ]
    note = (
        f"Last validation of each run, {comparison.images} images. Mean over seeds ± half of the 95% "
        "interval of Student's t."
    )
    return Table(["group", "seeds", *FIGURES], rows, "COCO figures", note)


def _differences(comparison: Comparison) -> Table:
    rows = []
    for group in comparison.groups:
        if group.difference is not None:
            cells = [_interval(group.difference[name].estimate) for name in ("AP", *SIZES)]
            lead = group.difference["AP"]
            rows.append([group.label, cells[0], _percent(lead.ahead), _half(lead.over_seeds), *cells[1:]])
    note = (
        "Of the means over seeds, with the 95% percentile interval of a paired bootstrap over images "
        f"({comparison.resamples} resamples, seed {comparison.seed}), and the share of resamples in which AP "
        "is ahead. It holds the runs fixed: it says how far other images could change the difference of "
        "these runs. How far other seeds could, on these images, says the column of seeds: half of the 95% "
        "interval of Student's t of the differences in AP, seed by seed, of the seeds that both have."
    )
    title = f"Difference to {comparison.baseline.label}"
    return Table(["group", "AP", "ahead", "seeds", *SIZES], rows, title, note)


def _gains(comparison: Comparison) -> Table:
    rows = [
        [group.label, over_seeds(group.coco["AP50"]), *(over_seeds(group.gains[kind]) for kind in KINDS)]
        for group in comparison.groups
    ]
    note = (
        "AP50 that correcting one kind of error alone would gain (TIDE, Bolya et al. 2020; IoU 0.5 and 0.1): "
        "wrong class, bad localisation, both, duplicate, background, missed. Mean over seeds ± half of the "
        "95% interval of Student's t."
    )
    return Table(["group", "AP50", *KINDS], rows, "What errors cost", note)


def _counts(comparison: Comparison) -> Table:
    kinds = (*KINDS, *SPECIAL)
    rows = [
        [group.label, *(f"{group.counts[kind].value:.0f}" for kind in kinds)] for group in comparison.groups
    ]
    note = "Mean over seeds of the number of each kind, and of all false positives and false negatives."
    return Table(["group", *kinds], rows, "How many errors", note)


def _training(comparison: Comparison) -> Table:
    rows = [
        [
            group.label,
            _listed(group.group.seeds),
            _listed(group.group.steps),
            *_cost(group),
        ]
        for group in comparison.groups
    ]
    columns = ["group", "seeds", "steps", "parameters", "FLOPs", "image"]
    return Table(columns, rows, "Training and cost", f"FLOPs: {DEFINITION}.")


def class_table(comparison: Comparison) -> Table:
    """Make the table of AP by class, with a row for each class and a column for each group."""
    rows: list[list[Cell]] = [
        [
            name,
            comparison.objects[name],
            *(decimals(group.per_class[name].value) for group in comparison.groups),
        ]
        for name in comparison.classes
    ]
    columns = ["class", "objects", *(group.label for group in comparison.groups)]
    return Table(columns, rows, "AP by class", "Mean over seeds; objects is the ground truth to find.")


def run_table(comparison: Comparison) -> Table:
    """Make the table of the runs themselves, with the folder of each."""
    rows = [
        [
            str(figures.run.folder),
            group.label,
            str(figures.run.seed),
            str(figures.run.detections.step),
            decimals(figures.coco["AP"]),
        ]
        for group in comparison.groups
        for figures in group.runs
    ]
    return Table(["folder", "group", "seed", "step", "AP"], rows, "Runs", text_columns=2)


def settings(comparison: Comparison) -> dict[str, list[str]]:
    """List the settings of each group that are unlike the baseline's, as ``key=value (not value)``."""
    base = comparison.baseline.config
    return {
        group.label: [
            f"{difference.key}={difference.values[1]} (not {difference.values[0]})"
            for difference in setting_differences([base, group.group.config])
        ]
        for group in comparison.groups
        if group.group is not comparison.baseline
    }


def over_seeds(estimate: Estimate) -> str:
    """Write a mean, and half of its interval on a line of its own."""
    if math.isnan(estimate.low):
        return decimals(estimate.value)
    return f"{estimate.value:.3f}\n±{estimate.high - estimate.value:.3f}"


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    return f"{_signed(estimate.value)}\n{_signed(estimate.low)}..{_signed(estimate.high)}"


def _half(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.low) else _signed(estimate.high - estimate.value).replace("+", "±")


def _signed(value: float) -> str:
    """Write without the leading zero: four such intervals stand side by side."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _cost(group: GroupFigures) -> list[str]:
    cost = group.cost
    if cost is None:
        return ["-", "-", "-"]
    return [f"{cost.parameters / 1e6:.2f} M", f"{cost.flops / 1e9:.2f} G", f"{cost.height} x {cost.width}"]

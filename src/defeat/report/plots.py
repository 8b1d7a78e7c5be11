"""The pictures of a report: a row for each group, so that names may be long and groups many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defeat.evaluation.average_precision import COCO_RECALLS
from defeat.evaluation.confusion import rule
from defeat.io.text import printable
from defeat.report.compare import Comparison, GroupFigures
from defeat.report.statistics import Estimate
from defeat.report.tide import KINDS
from defeat.visual.boxes import class_label
from defeat.visual.confusion import draw_confusion

# Okabe and Ito's blue and vermilion; the baseline is grey.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#6b7076"
_CYCLE = (_GREY, _BLUE, _VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # the baseline first
_INK, _GRID, _AXIS = "#2b2d31", "#e3e5e8", "#b9bdc3"
_LINE = 36  # characters of a name on one line
_NAMES = {
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def plot_figures(comparison: Comparison, path: Path) -> None:
    """Draw AP of each group, mean, 95% interval over seeds, and each run as a small dot."""
    groups = comparison.groups
    figure, (axes,) = _panels(groups, 1)
    for row, group in enumerate(groups):
        colour = _colour(group)
        values = [run.coco["AP"] for run in group.runs]
        axes.plot(values, [row + 0.22] * len(values), ".", color=colour, alpha=0.45, markersize=7)
        _dot(axes, row, group.coco["AP"], colour)
    _dress(axes, "AP at IoU 0.50 to 0.95: mean, 95% interval over seeds, single runs below")
    _save(figure, path)


def plot_differences(comparison: Comparison, path: Path) -> None:
    """Draw how far each group is ahead of the baseline in AP, with the bootstrap's interval."""
    groups = [group for group in comparison.groups if group.difference is not None]
    figure, (axes,) = _panels(groups, 1)
    axes.axvline(0, color=_GREY, linewidth=1.6)
    for row, group in enumerate(groups):
        if group.difference is not None:
            _dot(axes, row, group.difference["AP"].estimate, _BLUE)
    title = fill(f"Difference in AP to {printable(comparison.baseline.label)}", 60)
    _dress(axes, f"{title}\n95% interval of a paired bootstrap over images")
    _save(figure, path)


def plot_precision_recall(comparison: Comparison, path: Path) -> None:
    """Draw precision over recall of each group, mean over classes and runs, a panel for each of two IoUs."""
    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    panels[0].set_ylabel("precision", color=_INK)
    for axes, iou in zip(panels, (0.5, 0.75), strict=True):
        axes.set_prop_cycle(color=_CYCLE)
        for group in comparison.groups:
            precision = group.precision(iou)
            if precision is not None:
                axes.plot(COCO_RECALLS, precision, linewidth=1.8, label=fill(class_label(group.label), _LINE))
        axes.set_xlabel("recall", color=_INK)
        _dress(axes, f"Precision over recall at an IoU of {iou:.2f}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    legend = panels[1].legend(fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _save(figure, path)


def plot_confusion(comparison: Comparison, path: Path) -> None:
    """Draw the confusion matrix of the baseline and of the group with the highest AP."""
    best = max(comparison.groups, key=lambda group: np.nan_to_num(group.coco["AP"].value))
    shown = {group.label: group.confusion for group in (comparison.groups[0], best)}
    panels = [(fill(printable(label), _LINE), matrix) for label, matrix in shown.items()]
    draw_confusion(panels, comparison.classes, rule()).savefig(path)


def plot_errors(comparison: Comparison, path: Path) -> None:
    """Draw for each kind of error the AP50 that correcting it would gain, a panel for each kind."""
    groups = comparison.groups
    figure, panels = _panels(groups, len(KINDS))
    for axes, kind in zip(panels, KINDS, strict=True):
        for row, group in enumerate(groups):
            gain = group.gains[kind]
            axes.barh(row, np.nan_to_num(gain.value), height=0.62, color=_colour(group))
            _whisker(axes, row, gain, _INK)
        _dress(axes, _NAMES[kind])
        axes.locator_params(axis="x", nbins=2)
    # The panels share their scale. Bars start at 0, and where all are 0 there is no scale to be found.
    longest = max(panels[0].get_xlim()[1], 1e-3)
    panels[0].set_xlim(0, longest)
    figure.suptitle(
        "AP50 lost to each kind of error (TIDE): mean and 95% interval over seeds",
        fontsize=14,
        color=_INK,
        x=0.01,
        ha="left",
    )
    _save(figure, path)


def _panels(groups: Sequence[GroupFigures], columns: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side, whose rows are the groups from top to bottom."""
    labels = [fill(printable(group.label), _LINE) for group in groups]
    lines = sum(max(2, label.count("\n") + 1) for label in labels)
    figure = Figure(figsize=(11, 1.7 + 0.24 * lines), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0])
    # Labels are data: a $ in one is no formula.
    panels[0].set_yticks(range(len(groups)), labels, parse_math=False)
    panels[0].set_ylim(len(groups) - 0.45, -0.55)
    return figure, panels


def _dot(axes: Axes, row: int, estimate: Estimate, colour: str) -> None:
    _whisker(axes, row, estimate, colour)
    axes.plot([estimate.value], [row], "o", color=colour, markersize=8)


def _whisker(axes: Axes, row: int, estimate: Estimate, colour: str) -> None:
    axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2.0)


def _colour(group: GroupFigures) -> str:
    return _GREY if group.difference is None else _BLUE


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=12, color=_INK, loc="left", pad=8, parse_math=False)
    axes.tick_params(labelsize=10.5, colors=_INK, length=0)
    axes.grid(True, axis="x", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_AXIS)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)

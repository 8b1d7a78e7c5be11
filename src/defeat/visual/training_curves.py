"""Training curves of several runs, from the files that Lightning's CSVLogger writes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from defeat.errors import DataError
from defeat.visual.boxes import class_label

LOSS, AP = "train/loss_detection", "val/AP"

# Okabe and Ito: told apart without red and green, and in grey; the markers help further.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK, _GRID = "#2b2d31", "#e3e5e8"

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


def read_curve(csv_path: str | Path, column: str) -> Curve:
    """Steps (N,) and values (N,) of one column, where it is filled; of a step written twice, the later.

    Raises:
        DataError: the file is missing, has no such column, or a cell of it is no number.
    """
    path = Path(csv_path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; CSVLogger writes metrics.csv into its log folder")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        if column not in columns or "step" not in columns:
            raise DataError(f"{path}: no column {column!r} with steps; it holds {', '.join(columns)}")
        points: dict[int, float] = {}
        for row in rows:
            if row[column]:
                step, value = _numbers(path, rows.line_num, row["step"], row[column])
                points[step] = value
    steps = sorted(points)
    return np.array(steps, dtype=np.int64), np.array([points[s] for s in steps], dtype=np.float64)


def _numbers(path: Path, line: int, step: str, value: str) -> tuple[int, float]:
    try:
        return int(step), float(value)
    except ValueError:
        raise DataError(f"{path}, line {line}: step {step!r} or value {value!r} is no number") from None


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """(N,) centred mean over ``window`` neighbours, over fewer at the ends.

    Values that are not finite are left out; where a whole window is not finite, the result is NaN.
    """
    if not len(values):
        return values
    kernel = np.ones(max(1, min(window, len(values))))
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(np.float64), kernel, mode="same").round()
    mean: NDArray[np.float64] = np.full(len(values), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def plot_curves(runs: Mapping[str, str | Path], path: str | Path, teacher_ap: float | None = None) -> None:
    """Draw detection loss and validation AP against the optimisation step, one line per run.

    Args:
        runs: name of the run, e.g. ``plain`` and ``distilled``, and its ``metrics.csv``.
        path: picture to write; its ending decides the format.
        teacher_ap: AP of the teacher in [0, 1], a horizontal line.

    Raises:
        DataError: see :func:`read_curve`.
    """
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for i, (name, csv_path) in enumerate(runs.items()):
        _plot_loss(left, read_curve(csv_path, LOSS), i)
        _plot_ap(right, read_curve(csv_path, AP), name, i)
    if teacher_ap is not None:
        right.axhline(teacher_ap, color="#6b7076", linestyle=(0, (5, 3)), label=f"teacher  {teacher_ap:.3f}")
    _dress(left, "Training: detection loss (smoothed)")
    _dress(right, "Validation: AP at IoU 0.50 to 0.95")
    right.set_ylim(bottom=0)
    legend = right.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=12)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path)


def _plot_loss(axes: Axes, curve: Curve, place: int) -> None:
    steps, values = curve
    colour = _COLOURS[place % len(_COLOURS)]
    axes.plot(steps, values, color=colour, alpha=0.16, linewidth=0.8)
    axes.plot(steps, smooth(values, max(1, len(values) // 20)), color=colour, linewidth=2.2)


def _plot_ap(axes: Axes, curve: Curve, name: str, place: int) -> None:
    steps, values = curve
    last = f"  {values[-1]:.3f}" if len(values) else ""
    axes.plot(
        steps,
        values,
        color=_COLOURS[place % len(_COLOURS)],
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=5,
        linewidth=2.2,
        label=class_label(name) + last,
    )


def _dress(axes: Axes, title: str) -> None:
    """Titles, grid and ticks of one panel."""
    axes.set_title(title, fontsize=14, color=_INK, loc="left", pad=10)
    axes.set_xlabel("step", fontsize=12, color=_INK)
    axes.tick_params(labelsize=11.5, colors=_INK, length=0)
    axes.grid(True, color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b9bdc3")

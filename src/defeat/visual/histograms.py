"""Histograms of a data set: boxes of each class, and sizes of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from defeat.io.atomic_write import replacing
from defeat.io.text import cut, printable
from defeat.visual.boxes import FADED_INK, INK

_COLOURS = ("#0072B2", "#E69F00", "#009E73")  # Okabe and Ito's
_LONGEST = 32  # characters of a name
_MOST_ROWS = 120  # classes that can be read on one picture
_WIDE = 30  # times as many boxes of one class as of another, from where on the axis is logarithmic


def plot_classes(classes: Sequence[str], counts: Mapping[str, NDArray[np.int64]], path: Path) -> None:
    """Draw a row of bars for each class, most boxes first, a bar for each split.

    Args:
        classes: K names.
        counts: (K,) boxes, by the name of a split.
        path: a PNG file.
    """
    total = np.sum(list(counts.values()), axis=0)
    order = np.argsort(-total, kind="stable")[:_MOST_ROWS]
    rows, bar = np.arange(len(order)), 0.8 / len(counts)
    figure, axes = _figure(9, 1.4 + 0.24 * max(3, len(order)))
    for number, (split, values) in enumerate(counts.items()):
        axes.barh(rows + (number - (len(counts) - 1) / 2) * bar, values[order], bar, color=_COLOURS[number])
        axes.plot([], [], "s", color=_COLOURS[number], label=f"{split}: {int(values.sum()):,}")
    axes.set_yticks(rows, [cut(printable(classes[i]), _LONGEST) for i in order], parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    filled = total[total > 0]
    if len(filled) and filled.max() > _WIDE * filled.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(left=0.7)
    left_out = len(classes) - len(order)
    more = f" ({left_out} with fewer left out)" if left_out else ""
    axes.set_xlabel("boxes", color=FADED_INK)
    _dress(axes, f"Boxes of {len(classes)} classes{more}", "x")
    _save(figure, path)


def plot_sizes(
    sides: Mapping[str, NDArray[np.float64]], strides: Sequence[int], borders: Sequence[float], path: Path
) -> None:
    """Draw how large the objects are after the resize, and where the pyramid levels begin.

    Args:
        sides: (N,) square root of width times height in pixels, by the name of a split.
        strides: of the L levels, finest first.
        borders: (L - 1,) pixels from which on objects belong to the next level.
        path: a PNG file.
    """
    figure, axes = _figure(9, 4.6)
    both = np.concatenate(list(sides.values()))
    ends = [*borders, float(strides[0]), *([both.min(), both.max()] if len(both) else [])]
    low, high = np.floor(np.log2(max(0.5, min(ends)))), np.ceil(np.log2(max(ends)) + 0.3)
    bins: list[float] = (2.0 ** np.arange(low, high + 0.01, 0.25)).tolist()
    for number, (split, values) in enumerate(sides.items()):
        weights = np.full(len(values), 100 / max(1, len(values)))
        axes.hist(
            np.clip(values, bins[0], bins[-1]),
            bins,
            weights=weights,
            histtype="step",
            linewidth=1.8,
            color=_COLOURS[number],
        )
        axes.plot([], [], "s", color=_COLOURS[number], label=f"{split}: {len(values):,}")
    axes.set_xscale("log", base=2)
    axes.set_xlim(bins[0], bins[-1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("square root of the box's area after the resize, pixels", color=FADED_INK)
    axes.set_ylabel("% of the boxes", color=FADED_INK)
    axes.margins(y=0.12)
    edges = [bins[0], *borders, bins[-1]]
    for border in borders:
        axes.axvline(border, color=FADED_INK, linewidth=1, linestyle="dotted")
    axes.axvline(strides[0], color=FADED_INK, linewidth=1, linestyle="dashed")
    for stride, first, last in zip(strides, edges, edges[1:], strict=False):
        middle = np.sqrt(max(first, bins[0]) * min(last, bins[-1]))
        axes.annotate(
            f"stride {stride}",
            (middle, 1),
            (0, -4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color=FADED_INK,
        )
    _dress(axes, "Sizes of objects by pyramid level (dashed: a cell of the finest)", "y")
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _dress(axes: Axes, title: str, grid: str) -> None:
    axes.set_title(title, fontsize=12, color=INK, loc="left", pad=8, parse_math=False)
    axes.tick_params(labelsize=9.5, colors=INK, length=0)
    axes.grid(True, axis="x" if grid == "x" else "y", color="#e3e5e8", linewidth=0.9)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    legend = axes.legend(fontsize=9.5, handlelength=1, loc="lower right" if grid == "x" else "center left")
    legend.get_frame().set_edgecolor("white")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")

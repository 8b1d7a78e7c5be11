"""How the cost of a distillation step grows: a straight line for each thing that it grows with, and a figure.

    python benchmarks/growth.py
    python benchmarks/growth.py --start-up start_up.json
    python benchmarks/growth.py --rounds 1 --shrink 4 --figure growth.png

A small pair (ResNet-34 teaches ResNet-18) takes the whole step of DeFeat with several batches, image sizes,
numbers of boxes and of classes, all else being equal; masks and losses alone, and the masks of the methods,
are taken at 800x1333 pixels. What grows with the data set is read from what benchmarks/start_up.py measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import case as cases
import numpy as np
from case import Case, Step, distilled
from losses import Arithmetic
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import Timed, alternate, heading, table

from defeat.distill import fine_grained_mask, gaussian_mask, object_mask
from defeat.warning_filters import filter_warnings

FIGURE = Path(__file__).parents[1] / "docs" / "performance_growth.png"
PAIR = ["student.model.backbone=resnet18", "teacher.model.backbone=resnet34"]
NARROW = [f"{role}.model.fpn_channels=64" for role in ("student", "teacher")]

BATCH, SIDE, BOXES, CLASSES = 2, 256, 10, 80
"""Of the step, where something else is varied."""
BATCHES = (1, 2, 4, 8)
SIDES = (160, 256, 384, 512, 640)
BOX_COUNTS = (1, 10, 50, 100, 200, 500)
CLASS_COUNTS = (1, 10, 80, 300, 1000)
FULL_SIZE = (800, 1333)

MASKS = {"DeFeat": object_mask, "TADF": gaussian_mask, "FGFI": fine_grained_mask}

# Okabe and Ito's, as in the pictures of a report.
COLOURS = ("#0072B2", "#D55E00", "#009E73")
INK, GRID, AXIS = "#2b2d31", "#e3e5e8", "#b9bdc3"


class Series(NamedTuple):
    """What something costs at several sizes."""

    name: str
    sizes: Sequence[float]
    values: Sequence[float]
    """Medians."""
    spreads: Sequence[float] = ()


class Panel(NamedTuple):
    """Costs that grow with the same thing."""

    title: str
    grows_with: str
    unit: str
    series: Sequence[Series]


class Line(NamedTuple):
    """The straight line of least squares."""

    slope: float
    intercept: float
    departure: float
    """The farthest that a value is from it, as a share of the largest value."""


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    filter_warnings()
    heading("Growth", packages=["lightning", "matplotlib"])
    panels = [*steps(options), *alone(options)]
    if options.start_up:
        panels += start_up(json.loads(options.start_up.read_text()))
    print(_table(panels))
    print(
        "\nDeparture: the farthest that a median is from its straight line, as a share of the largest median."
    )
    draw(panels, options.figure)
    print(f"\nFigure: {options.figure.name}")


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divides all sizes but the batch's, for a quick try"
    )
    parser.add_argument("--start-up", type=Path, help="points of benchmarks/start_up.py: JSON")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args(words)


def steps(options: argparse.Namespace) -> list[Panel]:
    """The whole step: a panel for everything that it grows with."""
    sides, boxes, classes = (shrunk(sizes, options.shrink) for sizes in (SIDES, BOX_COUNTS, CLASS_COUNTS))
    side = max(SIDE // options.shrink, 1)

    def panel(grows_with: str, made: Mapping[float, Step]) -> Panel:
        return Panel("Whole step", grows_with, "s", [timed("step", made, options)])

    def make(images: int = BATCH, side: int = side, boxes: int = BOXES, classes: int = CLASSES) -> Step:
        return whole_step(images, side, boxes, classes, options.device)

    return [
        panel("images in a batch", {n: make(images=n) for n in BATCHES}),
        panel("pixels of an image, thousands", {n * n / 1e3: make(side=n) for n in sides}),
        panel("boxes of an image", {n: make(boxes=n) for n in boxes}),
        panel("classes", {n: make(classes=n) for n in classes}),
    ]


def whole_step(images: int, side: int, boxes: int, classes: int, device: str) -> Step:
    names = tuple(f"class {i}" for i in range(1, classes + 1))
    with patch.object(cases, "CLASSES", names):
        case = Case((side, side), images, boxes, device=device, overrides=[*PAIR, *NARROW])
        return distilled(case, "full")


def alone(options: argparse.Namespace) -> list[Panel]:
    """Masks and losses without a network around them, on full-size maps."""
    height, width = (side // options.shrink for side in FULL_SIZE)
    whole = Arithmetic(Case((height, width), BATCH, BOXES, device=options.device, overrides=PAIR))
    each = {n: whole.with_boxes(n) for n in shrunk(BOX_COUNTS, options.shrink)}
    where = f"{height}x{width}, {BATCH} images"
    drawn = [
        timed(name, {n: partial(mask, own.neck.grids(own.pair)) for n, own in each.items()}, options)
        for name, mask in MASKS.items()
    ]
    losses = timed("DeFeat", {n: own.whole for n, own in each.items()}, options)
    return [
        Panel(f"Masks and losses alone, {where}", "boxes of an image", "s", [losses]),
        Panel(f"The neck's masks alone, {where}", "boxes of an image", "s", drawn),
    ]


def start_up(points: Sequence[Mapping[str, float]]) -> list[Panel]:
    """Seconds and memory of beginning a run, by the size of the data set."""
    boxes = [point["boxes"] / 1e3 for point in points]

    def panel(key: str, unit: str) -> Panel:
        series = Series("start", boxes, [point[key] for point in points])
        return Panel("Start of a run", "boxes of the data set, thousands", unit, [series])

    return [panel("seconds", "s"), panel("mib", "MiB")]


def shrunk(sizes: Sequence[int], by: int) -> list[int]:
    return sorted({max(size // by, 1) for size in sizes})


def timed(name: str, made: Mapping[float, Step], options: argparse.Namespace) -> Series:
    """All sizes in alternating rounds."""
    found: dict[str, Timed] = alternate(
        {str(size): step for size, step in made.items()}, options.rounds, device=options.device
    )
    own = list(found.values())
    return Series(name, list(made), [one.median for one in own], [one.spread for one in own])


def fit(series: Series) -> Line:
    x, y = np.asarray(series.sizes, float), np.asarray(series.values, float)
    slope, intercept = np.polyfit(x, y, 1)
    line = slope * x + intercept
    return Line(float(slope), float(intercept), float(np.abs(y - line).max() / y.max()))


def _table(panels: Sequence[Panel]) -> str:
    rows = []
    for panel in panels:
        for series in panel.series:
            line = fit(series)
            name = series.name if len(panel.series) > 1 else ""
            rows.append(
                [
                    ", ".join(filter(None, [panel.title, name])),
                    panel.grows_with,
                    f"{series.sizes[0]:g} to {series.sizes[-1]:g}",
                    f"{series.values[0]:.3g} to {series.values[-1]:.3g} {panel.unit}",
                    f"{max(series.spreads, default=0):.1%}",
                    f"{line.slope:.3g}",
                    f"{line.intercept:.3g}",
                    f"{line.departure:.0%}",
                ]
            )
    header = [
        "cost of",
        "grows with",
        "sizes",
        "medians",
        "largest spread",
        "slope",
        "intercept",
        "departure",
    ]
    return table(header, rows)


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw what was measured as dots and the straight lines through them."""
    columns = 4
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(13, 3.1 * rows), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(every, panels, strict=False):
        for series, colour in zip(panel.series, COLOURS, strict=False):
            line = fit(series)
            ends = np.array([0, max(series.sizes)])
            axes.plot(ends, line.slope * ends + line.intercept, color=colour, linewidth=1.6, alpha=0.6)
            dots = {"color": colour, "markersize": 6, "clip_on": False, "zorder": 3}
            axes.plot(series.sizes, series.values, "o", label=series.name, **dots)
        _dress(axes, panel)
    figure.savefig(path)


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title.replace(", ", "\n", 1), fontsize=11, color=INK, loc="left")
    axes.set_xlabel(panel.grows_with, fontsize=10, color=INK)
    axes.set_ylabel(panel.unit, fontsize=10, color=INK)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=9.5, colors=INK, length=0)
    axes.grid(True, color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(AXIS)
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize=9.5, labelcolor=INK)


if __name__ == "__main__":
    main()

"""Precision over recall of one evaluation as a picture."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defeat.evaluation.average_precision import COCO_RECALLS, Floats
from defeat.visual.boxes import INK, class_label

MOST_NAMES = 20
"""Of more lines than these the legend has none, and they are drawn alike."""


def draw_precision_recall(curves: Mapping[str, Floats]) -> Figure:
    """Draw curves over each other.

    Args:
        curves: (101,) precision at the recalls 0, 0.01, ... 1 of each, by its name.
    """
    figure = Figure((7.5, 4.6), 100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].resampled(MOST_NAMES)(range(MOST_NAMES)))
    named = len(curves) <= MOST_NAMES
    for name, precision in curves.items():
        style = {"label": class_label(name)} if named else {"color": INK, "alpha": 0.25}
        axes.plot(COCO_RECALLS, precision, linewidth=1.4, **style)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xlabel("recall", color=INK)
    axes.set_ylabel("precision", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        for text in axes.legend(
            fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
        ).get_texts():
            text.set_parse_math(False)
    return figure

"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defeat.evaluation.confusion import BACKGROUND, MISSED, confusions
from defeat.evaluation.matching import Integers
from defeat.visual.boxes import FADED_INK, INK, class_label

MOST_CLASSES = 20
"""Of more classes the most frequent confusions are drawn, as many as this."""


def draw_confusion(panels: Sequence[tuple[str, Integers]], classes: Sequence[str], rule: str) -> Figure:
    """Draw matrices side by side, or bars of the most frequent confusions where the classes are many.

    Args:
        panels: title of each matrix, and the (K + 1, K + 1) matrix of
            :func:`~defeat.evaluation.confusion.confusion_matrix`.
        classes: K names.
        rule: by which detections and objects were matched, in words.
    """
    few = len(classes) <= MOST_CLASSES
    side = 1.6 + 0.36 * (len(classes) + 1) if few else 6.5
    figure = Figure((max(4.5, side) * len(panels), side + 0.6), 100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, (title, matrix) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_title(title, fontsize=11, color=INK, parse_math=False)
        (_draw_matrix if few else _draw_bars)(axes, matrix, classes)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.supxlabel(rule, fontsize=9, color=FADED_INK)
    return figure


def _draw_matrix(axes: Axes, matrix: Integers, classes: Sequence[str]) -> None:
    """Colours are shares of a row's objects; the row without objects has shares of its detections."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [class_label(name) for name in classes]
    places = range(len(matrix))
    axes.set_xticks(
        places, [*names, MISSED], rotation=45, ha="right", rotation_mode="anchor", parse_math=False
    )
    axes.set_yticks(places, [*names, BACKGROUND], parse_math=False)
    axes.set_xlabel("detected as", color=INK)
    axes.set_ylabel("object", color=INK)
    for row, column in np.argwhere(matrix).tolist():
        ink = "white" if shares[row, column] > 0.5 else INK
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=ink)


def _draw_bars(axes: Axes, matrix: Integers, classes: Sequence[str]) -> None:
    shown = confusions(matrix, classes)[:MOST_CLASSES]
    names = [f"{class_label(c.truth)} as {class_label(c.predicted)}" for c in shown]
    bars = axes.barh(range(len(shown)), [c.objects for c in shown], color="#0072B2")
    axes.bar_label(bars, [f" {c.objects} ({c.share:.0%})" for c in shown], fontsize=8, color=INK)
    axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("objects, and their share of the class", color=INK)

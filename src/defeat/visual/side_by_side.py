"""The detections of several models on the same images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from defeat.evaluation.matching import coco_overlaps, match_greedily
from defeat.types import Prediction, Target
from defeat.visual.boxes import (
    FADED_INK,
    FALSE_COLOUR,
    IGNORED_COLOUR,
    INK,
    LineStyle,
    class_colour,
    class_label,
    draw_boxes,
    outline,
    show_image,
)

Panel = Target | Prediction
Row = tuple[Tensor, Sequence[Panel]]

_DPI = 100

MOST_CLASSES = 20
"""Of more classes the legend has only those that are drawn."""


class Judgement(NamedTuple):
    """Detections and ground truth of one image, sorted into right and wrong."""

    hit: Tensor
    """(N,) bool: detections with a ground truth of their class."""
    ignored: Tensor
    """(N,) bool: detections inside a region to ignore, neither right nor wrong."""
    missed: Tensor
    """(M,) bool: ground truth, not to be ignored, that no detection took."""

    @property
    def false(self) -> Tensor:
        """(N,) bool: the other detections."""
        return ~self.hit & ~self.ignored


Counts = dict[str, int]
"""Number of objects of ground truth, or of found and missed objects and false detections."""


def side_by_side(
    rows: Sequence[Row],
    titles: Sequence[str],
    classes: Sequence[str],
    threshold: float = 0.5,
    iou: float = 0.5,
    side: int = 288,
) -> Figure:
    """Draw one row per image, one column per model, and a legend underneath.

    A panel that is a ``Target`` shows ground truth; a ``Prediction`` is judged by its row's ground truth:
    hits are solid in the colour of their class, false detections dashed red with the name of their class,
    missed objects dotted. Counts stand under every panel and, summed up, under every title.

    Args:
        rows: image, (3, H, W) uint8, and its panels; all boxes in pixels of that image. Each row holds at
            least one ``Target``, the first of which is the ground truth.
        titles: one per column.
        classes: the K names.
        threshold: detections with a lower score are left out.
        iou: overlap that a hit needs.
        side: px of the longer side of every image, about.

    Raises:
        ValueError: no rows, a row without ground truth or with another number of panels than titles.
    """
    if not rows:
        raise ValueError("side_by_side needs at least one row")
    for _, panels in rows:
        if len(panels) != len(titles):
            raise ValueError(f"{len(panels)} panels for {len(titles)} titles: {', '.join(titles)}")
    heights = [image.shape[1] / max(image.shape[1:]) for image, _ in rows]
    width, handles = len(titles) * (side + 10), _legend_handles(rows, classes, threshold)
    columns = max(1, int(width / (50 + 7 * max(len(str(handle.get_label())) for handle in handles))))
    under = 50 + 18 * -(-len(handles) // columns)  # px of the legend
    size = (width / _DPI, (sum(heights) * side + 28 * len(rows) + 50 + under) / _DPI)
    figure = Figure(size, _DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
    totals: list[Counts] = [{} for _ in titles]
    for line, (image, panels) in zip(grid, rows, strict=True):
        truth = _first_target(panels)
        for axes, panel, total in zip(line, panels, totals, strict=True):
            counts = _draw_panel(axes, image, panel, truth, classes, threshold, iou)
            axes.set_xlabel(_summary(counts), fontsize=9, color=FADED_INK)
            total.update({name: total.get(name, 0) + n for name, n in counts.items()})
    for axes, title, total in zip(grid[0], titles, totals, strict=True):
        axes.set_title(f"{title}\n{_summary(total)}", fontsize=11, color=INK, parse_math=False)
    rule = f"a hit has a score from {threshold:g} and an IoU from {iou:g}"
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, title=rule
    )
    legend.get_title().set(fontsize=9, color=FADED_INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def judge(prediction: Prediction, target: Target, iou: float = 0.5) -> Judgement:
    """Give each detection, best first, the free ground truth of its class that it overlaps most.

    Args:
        prediction: N detections, best first.
        target: M boxes in the same pixels.
        iou: overlap that a hit needs; for regions to ignore, the share of the detection that lies inside.
    """
    same_class = (prediction["labels"][:, None] == target["labels"]).numpy()  # (N, M)
    ignore = target["ignore"].numpy()
    matches = match_greedily(
        coco_overlaps(prediction["boxes"], target["boxes"], target["ignore"]) * same_class,
        np.array([iou]),
        crowd=ignore,
        ignored=ignore[None],
        ties="first",
    )
    hit = matches.hit[:, 0, 0]
    missed = ~ignore
    missed[matches.truth[hit]] = False
    return Judgement(*map(torch.from_numpy, (hit, matches.ignored[:, 0, 0], missed)))


def above(prediction: Prediction, threshold: float) -> Prediction:
    """Keep the detections whose score is at least ``threshold``, best first."""
    order = torch.argsort(prediction["scores"], descending=True, stable=True)
    order = order[prediction["scores"][order] >= threshold]
    return {
        "boxes": prediction["boxes"][order],
        "scores": prediction["scores"][order],
        "labels": prediction["labels"][order],
    }


def _is_prediction(panel: Panel) -> TypeGuard[Prediction]:
    return "scores" in panel


def _first_target(panels: Sequence[Panel]) -> Target:
    for panel in panels:
        if not _is_prediction(panel):
            return cast(Target, panel)
    raise ValueError("a row holds no Target to judge its predictions by")


def _draw_panel(
    axes: Axes,
    image: Tensor,
    panel: Panel,
    truth: Target,
    classes: Sequence[str],
    threshold: float,
    iou: float,
) -> Counts:
    if not _is_prediction(panel):
        target = cast(Target, panel)
        draw_boxes(axes, image, target["boxes"], target["labels"], classes, ignore=target["ignore"])
        return {"objects": int((~target["ignore"]).sum())}
    shown = above(panel, threshold)
    judged = judge(shown, truth, iou)
    show_image(axes, image)
    for box, label in zip(truth["boxes"][judged.missed], truth["labels"][judged.missed], strict=True):
        outline(axes, box, class_colour(int(label)), "dotted")
    for box in shown["boxes"][judged.ignored]:
        outline(axes, box, IGNORED_COLOUR, "dashed")
    for box, label in zip(shown["boxes"][judged.hit], shown["labels"][judged.hit], strict=True):
        outline(axes, box, class_colour(int(label)))
    for box, label in zip(shown["boxes"][judged.false], shown["labels"][judged.false], strict=True):
        outline(axes, box, FALSE_COLOUR, "dashed", class_label(classes[int(label) - 1]))
    return {
        "found": int(judged.hit.sum()),
        "missed": int(judged.missed.sum()),
        "false": int(judged.false.sum()),
    }


def _summary(counts: Counts) -> str:
    """``3 found · 1 missed · 2 false``, or ``4 objects``."""
    text = " · ".join(f"{n} {name}" for name, n in counts.items())
    return "1 object" if text == "1 objects" else text


def _legend_handles(rows: Sequence[Row], classes: Sequence[str], threshold: float) -> list[Patch]:
    """Explain the colours of the classes, of those that are drawn if there are many, and the line styles."""
    shown = set(range(1, len(classes) + 1))
    if len(classes) > MOST_CLASSES:
        panels = [panel for _, row in rows for panel in row]
        drawn = [above(p, threshold)["labels"] if _is_prediction(p) else p["labels"] for p in panels]
        shown = set(torch.cat(drawn).tolist())
    handles = [
        Patch(facecolor=class_colour(i), edgecolor=INK, label=class_label(classes[i - 1]))
        for i in sorted(shown)
    ]
    styles: list[tuple[str, str, LineStyle]] = [
        ("found", FADED_INK, "solid"),
        ("missed", FADED_INK, "dotted"),
        ("false, with its class", FALSE_COLOUR, "dashed"),
        ("crowd or difficult", IGNORED_COLOUR, "dashed"),
    ]
    handles += [
        Patch(fill=False, edgecolor=colour, linestyle=style, linewidth=1.8, label=name)
        for name, colour, style in styles
    ]
    return handles

"""An evaluation as a table for an 80-column terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from defeat.evaluation.evaluation import Evaluation

_COCO_ROWS = (
    ("all sizes", ("AP", "AP50", "AP75")),
    ("small, medium, large", ("APs", "APm", "APl")),
    ("1, 10, 100 detections", ("AR1", "AR10", "AR100")),
    ("small, medium, large", ("ARs", "ARm", "ARl")),
)
_VOC_LABELS = {"AP50_11point": "11 points (2007)", "AP50_allpoint": "all points (2010)"}
_FEW_CLASSES = 12  # beyond this one column of classes is taller than a terminal


def evaluation_table(evaluation: Evaluation, title: str = "Evaluation") -> RenderableType:
    """Render all figures for :func:`rich.print`; "-" stands for a figure there was nothing to measure by.

    Args:
        evaluation: the figures; long class names are folded.
        title: heading of the COCO figures, beside the number of images.
    """
    return Group(
        _coco_table(evaluation, title),
        _figures_table(
            {_VOC_LABELS[key]: value for key, value in evaluation.voc.items()}, "VOC mAP at IoU 0.5"
        ),
        _figures_table(evaluation.per_class, "AP per class"),
    )


def _coco_table(evaluation: Evaluation, title: str) -> Table:
    images = "1 image" if evaluation.images == 1 else f"{evaluation.images} images"
    rendered = Table(
        title=escape(f"{title}, {images}"), title_justify="left", box=box.SIMPLE, show_header=False
    )
    rendered.add_column(style="dim")
    for _ in range(3):
        rendered.add_column(style="bold")
        rendered.add_column(justify="right")
    for label, keys in _COCO_ROWS:
        cells = (cell for key in keys for cell in (key, _format(evaluation.coco[key])))
        rendered.add_row(label, *cells)
    return rendered


def _figures_table(figures: Mapping[str, float], title: str) -> Table:
    """List names and figures, read downwards; in three columns where there are many."""
    columns = 1 if len(figures) <= _FEW_CLASSES else 3
    rows = math.ceil(len(figures) / columns)
    rendered = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    for _ in range(columns):
        rendered.add_column(overflow="fold", max_width=16 if columns > 1 else 60)
        rendered.add_column(justify="right", min_width=5)
    cells = [(escape(name), _format(figure)) for name, figure in figures.items()]
    for row in range(rows):
        rendered.add_row(*(text for cell in cells[row::rows] for text in cell))
    return rendered


def _format(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.3f}"

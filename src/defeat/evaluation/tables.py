"""An evaluation as tables for an 80-column terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.columns import Columns
from rich.console import Group, RenderableType

from defeat.evaluation.evaluation import COCO_KEYS, Evaluation
from defeat.render import Table, decimals

_VOC_LABELS = {"AP50_11point": "11 points (2007)", "AP50_allpoint": "all points (2010)"}
_MAX_ROWS = 12  # beyond this one table of classes is taller than a terminal


def evaluation_table(evaluation: Evaluation, title: str = "Evaluation") -> RenderableType:
    """Render all figures for :func:`rich.print`; "-" stands for a figure there was nothing to measure by.

    Args:
        evaluation: the figures; long class names are folded.
        title: heading of the COCO figures, beside the number of images.
    """
    images = "1 image" if evaluation.images == 1 else f"{evaluation.images} images"
    precision, recall = (
        {key: evaluation.coco[key] for key in COCO_KEYS if key.startswith(kind)} for kind in ("AP", "AR")
    )
    voc = {_VOC_LABELS[key]: value for key, value in evaluation.voc.items()}
    return Group(
        _one_row(precision, f"{title}, {images}").as_rich(),
        _one_row(recall, "").as_rich(),
        _one_row(voc, "VOC mAP at IoU 0.5").as_rich(),
        "AP per class",
        _per_class(evaluation.per_class),
    )


def _one_row(figures: Mapping[str, float], title: str) -> Table:
    return Table(list(figures), [[decimals(value) for value in figures.values()]], title, text_columns=0)


def _per_class(figures: Mapping[str, float]) -> RenderableType:
    """List classes with their AP, read downwards; in three columns where there are many."""
    rows = [(name, decimals(value)) for name, value in figures.items()]
    height = math.ceil(len(rows) / 3) if len(rows) > _MAX_ROWS else max(1, len(rows))
    parts = [rows[start : start + height] for start in range(0, len(rows), height)]
    return Columns([Table(("class", "AP"), part).as_rich() for part in parts])

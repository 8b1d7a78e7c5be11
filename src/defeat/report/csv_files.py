"""A report as CSV, for spreadsheets and programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from defeat.evaluation.average_precision import COCO_RECALLS
from defeat.evaluation.confusion import MISSED, confusion_rows
from defeat.evaluation.evaluation import COCO_KEYS
from defeat.render import Cell, Table
from defeat.report.bootstrap import FIGURES
from defeat.report.compare import Comparison, GroupFigures
from defeat.report.statistics import Estimate
from defeat.report.tide import KINDS, SPECIAL

Row = dict[str, Cell]


def write_csv(comparison: Comparison, folder: Path) -> None:
    """Write summary.csv (groups), runs.csv and others; an empty cell stands for nan."""
    groups = comparison.groups
    files: dict[str, list[Row]] = {
        "summary.csv": [_group(group, group.group is comparison.baseline) for group in groups],
        "runs.csv": [row for group in groups for row in _runs(group)],
        "classes.csv": [
            {
                "group": group.label,
                "class": name,
                "objects": comparison.objects[name],
                **_estimate("AP", estimate),
            }
            for group in groups
            for name, estimate in group.per_class.items()
        ],
        "errors.csv": [
            {
                "group": group.label,
                "error": kind,
                **_estimate("gain", group.gains[kind]),
                **_estimate("count", group.counts[kind]),
            }
            for group in groups
            for kind in (*KINDS, *SPECIAL)
        ],
        "precision_recall.csv": [row for group in groups for row in _curves(group, comparison.classes)],
        "confusion.csv": [row for group in groups for row in _confusion(group, comparison.classes)],
    }
    for name, rows in files.items():
        table = Table(list(rows[0]) if rows else [], [list(row.values()) for row in rows])
        (folder / name).write_text(table.as_csv(), encoding="utf-8")


def _group(group: GroupFigures, is_baseline: bool) -> Row:
    row: Row = {
        "group": group.label,
        "baseline": int(is_baseline),
        "seeds": " ".join(map(str, group.group.seeds)),
        "steps": " ".join(map(str, group.group.steps)),
        "parameters": group.cost.parameters if group.cost else None,
        "flops": group.cost.flops if group.cost else None,
        "image_height": group.cost.height if group.cost else None,
        "image_width": group.cost.width if group.cost else None,
    }
    for name in FIGURES:
        row |= _estimate(name, group.coco[name])
    for name in FIGURES:
        difference = group.difference[name] if group.difference else None
        row |= _estimate(f"{name}_difference", difference.estimate if difference else Estimate(math.nan))
        row[f"{name}_ahead"] = difference.ahead if difference else None
        seeds = difference.over_seeds if difference else Estimate(math.nan)
        row |= _estimate(f"{name}_difference_seeds", seeds)
    return row


def _runs(group: GroupFigures) -> list[Row]:
    return [
        {
            "group": group.label,
            "seed": figures.run.seed,
            "step": figures.run.detections.step,
            "folder": str(figures.run.folder),
            **{name: figures.coco[name] for name in COCO_KEYS},
            **{f"{kind}_gain": figures.errors.gains[kind] for kind in (*KINDS, *SPECIAL)},
            **{f"{kind}_count": figures.errors.counts[kind] for kind in (*KINDS, *SPECIAL)},
        }
        for figures in group.runs
    ]


def _curves(group: GroupFigures, classes: Sequence[str]) -> Iterator[Row]:
    """Yield the points of the curves of each class, and of the mean over classes, at two IoUs."""
    for iou in (0.5, 0.75):
        for label, name in enumerate(["", *classes]):
            precision = group.precision(iou, label or None)
            if precision is not None:
                for recall, value in zip(COCO_RECALLS.tolist(), precision.tolist(), strict=True):
                    where: Row = {"group": group.label, "class": name, "IoU": iou}
                    yield {**where, "recall": round(recall, 2), "precision": value}


def _confusion(group: GroupFigures, classes: Sequence[str]) -> Iterator[Row]:
    """Yield the cells of the confusion matrix that are not 0."""
    for truth, *counts in confusion_rows(group.confusion, classes):
        for predicted, count in zip([*classes, MISSED], counts, strict=True):
            if count:
                yield {"group": group.label, "class": truth, "detected as": predicted, "objects": count}


def _estimate(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}

"""A report as CSV, for spreadsheets and programs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from defeat.evaluation.evaluation import COCO_KEYS
from defeat.report.bootstrap import FIGURES
from defeat.report.compare import Comparison, GroupFigures
from defeat.report.statistics import Estimate
from defeat.report.tide import KINDS, SPECIAL

Row = dict[str, Any]


def write_csv(comparison: Comparison, folder: Path) -> list[Path]:
    """Write summary.csv (groups), runs.csv, classes.csv and errors.csv; an empty cell stands for nan."""
    tables = {
        "summary.csv": [_group(of, of.group is comparison.baseline) for of in comparison.groups],
        "runs.csv": [row for of in comparison.groups for row in _runs(of)],
        "classes.csv": [row for of in comparison.groups for row in _classes(of, comparison.objects)],
        "errors.csv": [row for of in comparison.groups for row in _errors(of)],
    }
    for name, rows in tables.items():
        _write(folder / name, rows)
    return [folder / name for name in tables]


def _group(of: GroupFigures, is_baseline: bool) -> Row:
    row: Row = {
        "group": of.group.label,
        "baseline": int(is_baseline),
        "seeds": " ".join(map(str, of.group.seeds)),
        "steps": " ".join(map(str, of.group.steps)),
        "parameters": of.cost.parameters if of.cost else math.nan,
        "flops": of.cost.flops if of.cost else math.nan,
        "image_height": of.cost.height if of.cost else math.nan,
        "image_width": of.cost.width if of.cost else math.nan,
    }
    for name in FIGURES:
        row |= _estimate(name, of.coco[name])
    for name in FIGURES:
        found = of.difference[name] if of.difference else None
        row |= _estimate(f"{name}_difference", found.estimate if found else Estimate(math.nan))
        row[f"{name}_ahead"] = found.ahead if found else math.nan
    return row


def _runs(of: GroupFigures) -> list[Row]:
    return [
        {
            "group": of.group.label,
            "seed": figures.run.seed,
            "step": figures.run.detections.step,
            "folder": str(figures.run.folder),
            **{name: figures.coco[name] for name in COCO_KEYS},
            **{f"{kind}_gain": figures.errors.gains[kind] for kind in (*KINDS, *SPECIAL)},
            **{f"{kind}_count": figures.errors.counts[kind] for kind in (*KINDS, *SPECIAL)},
        }
        for figures in of.runs
    ]


def _classes(of: GroupFigures, objects: Mapping[str, int]) -> list[Row]:
    return [
        {"group": of.group.label, "class": name, "objects": objects[name], **_estimate("AP", estimate)}
        for name, estimate in of.per_class.items()
    ]


def _errors(of: GroupFigures) -> list[Row]:
    return [
        {
            "group": of.group.label,
            "error": kind,
            **_estimate("gain", of.gains[kind]),
            **_estimate("count", of.counts[kind]),
        }
        for kind in (*KINDS, *SPECIAL)
    ]


def _estimate(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value

"""The demo's table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from defeat.data import DetectionDataset
from defeat.evaluation import Evaluation
from defeat.render import Table, decimals
from defeat.types import Annotations, Prediction, Record, Target
from defeat.visual import side_by_side

METRICS = ("AP", "AP50", "AP75")


class Row(NamedTuple):
    """One model of the comparison."""

    name: str
    evaluation: Evaluation
    parameters: int
    seconds: float | None
    """Training time with validation; None for a teacher that was there already."""
    predictions: Mapping[int, Prediction]
    """Position of each validation image to the detections on it."""


def results_table(rows: Sequence[Row]) -> Table:
    """Compare the models."""
    return Table(
        ["model", *METRICS, "parameters", "training seconds"],
        [
            [
                row.name,
                *(decimals(row.evaluation.coco[name]) for name in METRICS),
                f"{row.parameters / 1e6:.2f} M",
                "shipped" if row.seconds is None else f"{row.seconds:.0f}",
            ]
            for row in rows
        ],
        "Generated scenes, validation split",
    )


def draw_detections(annotations: Annotations, rows: Sequence[Row], pictures: int, path: Path) -> None:
    """Draw ground truth and every model's detections on the fullest validation images."""
    dataset = DetectionDataset(annotations)
    grid: list[tuple[Tensor, list[Target | Prediction]]] = []
    for index in _fullest(annotations.records, pictures):
        image, target = dataset[index]
        grid.append((image, [target, *(row.predictions[index] for row in rows)]))
    titles = ["ground truth", *(row.name for row in rows)]
    side_by_side(grid, titles, annotations.classes).savefig(path)


def _fullest(records: Sequence[Record], pictures: int) -> list[int]:
    """Positions of the images with most objects, of equals the first: no result influences the choice."""
    order = sorted(range(len(records)), key=lambda i: (-int((~records[i].ignore).sum()), i))
    return sorted(order[:pictures])

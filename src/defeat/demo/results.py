"""The demo's table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from defeat.data import DetectionDataset
from defeat.evaluation import Evaluation
from defeat.types import Annotations, Prediction, Record, Target
from defeat.visual import side_by_side

FIGURES = ("AP", "AP50", "AP75")
HEADER = ("model", *FIGURES, "parameters", "training seconds")


class Row(NamedTuple):
    """One model of the comparison."""

    name: str
    evaluation: Evaluation
    parameters: int
    seconds: float | None
    """Training time with validation; None for a teacher that was there already."""
    predictions: Mapping[int, Prediction]
    """On the validation images, by position."""


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print the comparison."""
    table = Table(title="Generated scenes, validation split", title_justify="left")
    for name in HEADER:
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the same as Markdown."""
    lines = [HEADER, ("---", *["--:"] * (len(HEADER) - 1)), *(_cells(row) for row in rows)]
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def _cells(row: Row) -> tuple[str, ...]:
    seconds = "shipped" if row.seconds is None else f"{row.seconds:.0f}"
    figures = (f"{row.evaluation.coco[name]:.3f}" for name in FIGURES)
    return (row.name, *figures, f"{row.parameters / 1e6:.2f} M", seconds)


def draw_detections(annotations: Annotations, rows: Sequence[Row], pictures: int, path: Path) -> None:
    """Draw ground truth and every model's detections on the fullest validation images."""
    dataset = DetectionDataset(annotations)
    grid: list[tuple[Tensor, list[Target | Prediction]]] = []
    for index in _fullest(annotations.records, pictures):
        image, target = dataset[index]
        grid.append((image, [target, *(row.predictions[index] for row in rows)]))
    titles = ["ground truth", *(row.name for row in rows)]
    side_by_side(grid, titles, annotations.classes).save(path)


def _fullest(records: Sequence[Record], pictures: int) -> list[int]:
    """Positions of the images with most objects, of equals the first: no result influences the choice."""
    order = sorted(range(len(records)), key=lambda i: (-int((~records[i].ignore).sum()), i))
    return sorted(order[:pictures])

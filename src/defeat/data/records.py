"""From boxes in the order of a file to one record an image, the same way for every format."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from defeat.data.boxes import clean_boxes
from defeat.data.problems import Problems
from defeat.types import Record


class ImageRow(NamedTuple):
    """An image as an annotation file lists it."""

    image_id: int | str
    path: Path
    width: int
    height: int


class BoxColumns:
    """Boxes as they are read, a column for each field: 860,000 take 50 MB, as objects a gigabyte."""

    def __init__(self) -> None:
        self.owner = array("q")
        self.xyxy = array("d")
        self.label = array("q")
        self.ignore = array("b")
        self.area = array("d")

    def add(
        self,
        owner: int,
        xyxy: tuple[float, float, float, float],
        label: int,
        ignore: bool,
        area: float = float("nan"),
    ) -> None:
        """Append one box; ``owner`` is its image's position; an area of NaN stands for width times height."""
        self.owner.append(owner)
        self.xyxy.extend(xyxy)
        self.label.append(label)
        self.ignore.append(ignore)
        self.area.append(area)


def build_records(images: Sequence[ImageRow], columns: BoxColumns, problems: Problems) -> list[Record]:
    """Clean all boxes at once and hand each image its own, in the order of the images.

    Args:
        images: every image, also those without boxes.
        columns: their boxes in any order, labels already 1..K.
        problems: receives the counts of boxes clipped and dropped.
    """
    owner = np.array(columns.owner, dtype=np.int64)
    sizes = np.array([(row.width, row.height) for row in images], dtype=np.int64).reshape(-1, 2)
    xyxy = np.array(columns.xyxy, dtype=np.float64).reshape(-1, 4)
    clean = clean_boxes(xyxy, sizes[owner, 0], sizes[owner, 1])
    problems.add(clean.counts)

    owner = owner[clean.kept]
    order = np.argsort(owner, kind="stable")
    boxes = clean.boxes[order]
    label = np.array(columns.label, dtype=np.int64)[clean.kept][order]
    ignore = np.array(columns.ignore, dtype=np.bool_)[clean.kept][order]
    given = np.array(columns.area, dtype=np.float32)[clean.kept][order]
    area = np.where(np.isnan(given), (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), given)

    ends = np.cumsum(np.bincount(owner, minlength=len(images))).tolist()
    starts = [0, *ends[:-1]]
    return [
        Record(*row, boxes[start:end], label[start:end], ignore[start:end], area[start:end])
        for row, start, end in zip(images, starts, ends, strict=False)
    ]

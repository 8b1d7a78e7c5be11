"""Sizes of a split's objects after a detector's resize, and the pyramid levels that they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from defeat.detectors import inspect_detector
from defeat.distill.grids import box_level
from defeat.preflight.finding import Problem
from defeat.preflight.samples import transform_of
from defeat.types import Annotations

TINY_SHARE = 0.25
"""With more boxes than this smaller than a cell of the finest level, much of the data cannot be seen."""


class ObjectSizes(NamedTuple):
    """Boxes of a split, those to ignore left out, in pixels of the resized images."""

    sides: NDArray[np.float64]
    """(N,) square root of width times height, pixels."""
    strides: tuple[int, ...]
    """Of the L pyramid levels, finest first."""
    counts: tuple[int, ...]
    """(L,) boxes that belong to each level, see :func:`~defeat.distill.grids.box_level`."""
    borders: tuple[float, ...]
    """(L - 1,) sides in pixels from which on a box belongs to the next level."""
    tiny: int
    """Boxes with a smaller area than one cell of the finest level."""

    def __str__(self) -> str:
        total = max(1, len(self.sides))
        shares = zip(self.strides, self.counts, strict=True)
        levels = ", ".join(f"stride {stride} {count / total:.0%}" for stride, count in shares)
        return f"{levels}; {self.tiny / total:.0%} smaller than a cell of the finest"


def object_sizes(annotations: Annotations, detector: nn.Module) -> ObjectSizes:
    """Compute from the annotations alone how large a detector sees the objects; augmentation is left out."""
    spec = inspect_detector(detector)
    transform = transform_of(detector)
    scaled = [
        record.boxes[~record.ignore] * _scale(transform, record.height, record.width)
        for record in annotations.records
        if record.width and record.height
    ]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *scaled])  # (N, 4)
    strides = tuple(level.stride for level in spec.neck)
    levels = box_level(torch.from_numpy(boxes), strides[0], len(strides), spec.min_object_cells)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return ObjectSizes(
        np.sqrt(areas.astype(np.float64)),
        strides,
        tuple(torch.bincount(levels, minlength=len(strides)).tolist()),
        tuple(spec.min_object_cells * strides[0] * 2.0**level for level in range(1, len(strides))),
        int((areas < strides[0] ** 2).sum()),
    )


def size_problems(split: str, annotations: Annotations, sizes: ObjectSizes) -> Iterator[Problem]:
    """Tell of a split of which many objects are too small to be found, unless its boxes are wrong anyway."""
    cell = sizes.strides[0]
    if any(problem.of_boxes for problem in annotations.problems):
        return
    if sizes.tiny > TINY_SHARE * len(sizes.sides):
        yield Problem(
            f"{sizes.tiny} of {len(sizes.sides)} {split} objects are smaller than a cell of {cell} x {cell} "
            "pixels of the resized image, too small to be found",
            "raise student.model.min_size and max_size, and the teacher's with them",
            severe=False,
        )


def _scale(transform: Any, height: int, width: int) -> np.float32:
    """Return the factor by which a detector enlarges an image; the geometric mean if its sides differ."""
    fixed_size, min_size, max_size = transform.fixed_size, transform.min_size, transform.max_size
    if fixed_size is not None:
        return np.float32(np.sqrt(np.prod(fixed_size) / (height * width)))
    small, large = min(height, width), max(height, width)
    return np.float32(min(min_size[-1] / small, max_size / large))

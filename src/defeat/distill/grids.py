"""Boxes on the grids of feature maps: the level and the cells of each box.

Sizes are in cells of the map, boxes are xyxy in pixels of the resized image. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from defeat.errors import ConfigError


class Grids(NamedTuple):
    """What a mask is drawn on: the boxes of a batch, and some levels of maps, finest first."""

    boxes: Sequence[Tensor]
    """One (N_i, 4) per image."""
    shapes: Sequence[tuple[int, int]]
    """(H, W) of each level."""
    strides: Sequence[int]
    """Pixels per cell of each level, doubling from level to level."""
    min_object_cells: float = 14.0
    """The fewest cells that an object spans on its level, see :func:`box_level`: the student's."""
    anchors: Sequence[Tensor] = ()
    """(A, 4) of each level: the student's anchors of the cell at the origin. Empty on backbone stages."""


def box_level(boxes: Tensor, first_stride: int, levels: int, min_object_cells: float = 14.0) -> Tensor:
    """Return the index of the pyramid level that each box belongs to, (N,) int64 in 0..levels-1.

    ``clamp(floor(log2(sqrt((w + 1) (h + 1)) / (m first_stride) + 1e-6)), 0, levels - 1)`` with
    m = ``min_object_cells``: a box spans m to 2 m cells of its level. 14 on stride 4 is the 56 pixels of
    DeFeat's rule for P2..P6.

    Args:
        boxes: (N, 4) xyxy pixels.
        first_stride: pixels per cell of level 0.
        levels: how many levels there are.
        min_object_cells: the fewest cells that an object spans on its level.
    """
    size = ((boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)).clamp(min=0).sqrt()
    level = torch.log2(size / (min_object_cells * first_stride) + 1e-6).floor()
    return level.clamp(0, levels - 1).long()


def box_cells(boxes: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Return the cells that each box covers, (N, 4) int64 (x1, y1, x2, y2).

    x2 and y2 are exclusive. Coordinates are truncated; a box that has no extent left in either direction is
    its single cell (y1, x1). Cells stay on the map, wherever the box lies.
    """
    return _cells(boxes, *_to(boxes.device, [[stride], [height], [width]]))


def level_of_boxes(boxes: Tensor, grids: Grids, min_object_cells: float | None) -> Tensor:
    """Return the level of each box, (N,) int64; a given ``min_object_cells`` goes before that of the
    grids."""
    first, strides = grids.strides[0], list(grids.strides)
    if strides != [first * 2**i for i in range(len(strides))]:
        raise ConfigError(
            f"levels of strides {strides} do not double from one to the next, so objects cannot be given to "
            "them: choose consecutive ones (distiller.terms.neck.strides), or a mask without levels"
        )
    return box_level(boxes, first, len(strides), object_cells(grids, min_object_cells))


def object_cells(grids: Grids, min_object_cells: float | None) -> float:
    """Return the fewest cells that an object spans on its level: the given number, or that of the grids."""
    return grids.min_object_cells if min_object_cells is None else min_object_cells


def flatten_boxes(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return all boxes, (N, 4), and the image that each belongs to, (N,) int64."""
    counts = [len(of_image) for of_image in boxes]
    image = torch.arange(len(boxes)).repeat_interleave(torch.tensor(counts), output_size=sum(counts))
    flat = torch.cat(list(boxes))
    return flat, image.to(flat.device, non_blocking=True)


class PlacedBoxes(NamedTuple):
    """The cells of boxes, each on its own level, where the maps of all levels are laid end to end."""

    cells: Tensor
    """(N, 4), see :func:`box_cells`."""
    start: Tensor
    """(N,) index of the first cell of the image's map."""
    row: Tensor
    """(N,) cells from one row of that map to the next."""


def place_boxes(boxes: Tensor, image: Tensor, level: Tensor, grids: Grids, margin: int = 0) -> PlacedBoxes:
    """Put every box on its level; maps have ``margin`` more rows and columns than their levels."""
    first = [0, *accumulate(cells_per_level(grids, margin))][:-1]
    heights, widths = zip(*grids.shapes, strict=True)
    table = _to(boxes.device, [grids.strides, heights, widths, first])  # (4, L)
    stride, height, width, start = table[:, level]  # (N,) each
    row = width + margin
    return PlacedBoxes(_cells(boxes, stride, height, width), start + image * (height + margin) * row, row)


def _cells(boxes: Tensor, stride: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Compute :func:`box_cells` from numbers of each box, (N,), or of all, (1,)."""
    cells = (boxes / stride[:, None]).long().clamp(min=0)  # (N, 4)
    size = torch.stack([width, height], dim=1)  # (N, 2) or (1, 2)
    start, end = torch.minimum(cells[:, :2], size - 1), torch.minimum(cells[:, 2:], size)
    single = (end <= start).any(1, keepdim=True)  # (N, 1)
    return torch.cat([start, torch.where(single, start + 1, end)], dim=1)


def cells_per_level(grids: Grids, margin: int = 0) -> list[int]:
    """Return the number of cells of each level in all images together."""
    return [len(grids.boxes) * (height + margin) * (width + margin) for height, width in grids.shapes]


def split_levels(flat: Tensor, grids: Grids, margin: int = 0) -> list[Tensor]:
    """Cut maps that were laid end to end into (B, H + margin, W + margin) for each level."""
    levels = flat.split(cells_per_level(grids, margin))
    return [
        level.view(len(grids.boxes), height + margin, width + margin)
        for level, (height, width) in zip(levels, grids.shapes, strict=True)
    ]


def _to(device: torch.device, table: Sequence[Sequence[int]]) -> Tensor:
    """Bring numbers that the host knows to the device, as int64; nothing waits."""
    return torch.tensor(table).to(device, non_blocking=True)

"""Which cells of a feature map are object, as pure functions of the boxes.

Sizes are in cells of the map, boxes are xyxy in pixels of the resized image. Everything is vectorised over
boxes and images, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Mask = Callable[[Sequence[Tensor], Sequence[tuple[int, int]], Sequence[int]], list[Tensor]]
"""(boxes of each image, (H, W) of each level, stride of each level) -> one (B, H, W) float mask a level."""


def box_level(boxes: Tensor, first_stride: int, levels: int, cells: float = 14.0) -> Tensor:
    """Index of the pyramid level that each box belongs to, (N,) int64 in 0..levels-1.

    ``clamp(floor(log2(sqrt((w + 1) (h + 1)) / (cells * first_stride) + 1e-6)), 0, levels - 1)``: a box
    spans ``cells`` to ``2 * cells`` cells of its level. 14 on stride 4 is the 56 pixels of DeFeat's rule for
    P2..P6.

    Args:
        boxes: (N, 4) xyxy pixels.
        first_stride: pixels per cell of level 0.
    """
    size = ((boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)).clamp(min=0).sqrt()
    level = torch.log2(size / (cells * first_stride) + 1e-6).floor()
    return level.clamp(0, levels - 1).long()


def box_cells(boxes: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Cells a box covers, (N, 4) int64 (x1, y1, x2, y2) with x2 and y2 exclusive and at least one cell.

    Coordinates are truncated; a box that has no extent left in either direction is its single cell (y1, x1).
    Cells stay on the map, wherever the box lies.
    """
    cells = (boxes / stride).long()
    x1, y1 = cells[:, 0].clamp(0, width - 1), cells[:, 1].clamp(0, height - 1)
    x2, y2 = cells[:, 2].clamp(0, width), cells[:, 3].clamp(0, height)
    single = (x2 <= x1) | (y2 <= y1)
    return torch.stack([x1, y1, torch.where(single, x1 + 1, x2), torch.where(single, y1 + 1, y2)], dim=1)


def object_mask(
    boxes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    cells: float = 14.0,
) -> list[Tensor]:
    """DeFeat's neck mask (Eq. 4): 1 in the cells of the ground-truth boxes, each box on one level only.

    Args:
        boxes: one (N_i, 4) per image.
        shapes: (H, W) of each level, finest first.
        strides: pixels per cell of each level, doubling from level to level.
        cells: see :func:`box_level`. 14 for Faster R-CNN's levels, 4 for RetinaNet's (its smallest anchors
            span 4 cells of their level, and larger ones follow by the octave).

    Returns:
        One (B, H, W) float32 mask of zeros and ones per level.
    """
    flat, image = _flatten(boxes)
    level = box_level(flat, strides[0], len(strides), cells)
    return [
        _fill(box_cells(flat, stride, *shape), image, level == i, len(boxes), shape)
        for i, (shape, stride) in enumerate(zip(shapes, strides, strict=True))
    ]


def shared_mask(
    boxes: Sequence[Tensor], shapes: Sequence[tuple[int, int]], strides: Sequence[int], *, stride: int = 4
) -> list[Tensor]:
    """DeFeat's backbone mask: all boxes drawn once at ``stride``, resized by nearest to every map.

    Arguments and result as for :func:`object_mask`; boxes do not choose a level here.
    """
    height, width = (shapes[0][0] * strides[0] // stride, shapes[0][1] * strides[0] // stride)
    flat, image = _flatten(boxes)
    everything = torch.ones_like(image, dtype=torch.bool)
    drawn = _fill(box_cells(flat, stride, height, width), image, everything, len(boxes), (height, width))
    return [torch.nn.functional.interpolate(drawn[:, None], shape, mode="nearest")[:, 0] for shape in shapes]


def gaussian_mask(
    boxes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    cells: float = 14.0,
) -> list[Tensor]:
    """TADF's mask (Sun et al. 2020): a Gaussian over each box on its level, the maximum where boxes overlap.

    Arguments and result as for :func:`object_mask`; values lie in [0, 1].
    """
    flat, image = _flatten(boxes)
    level = box_level(flat, strides[0], len(strides), cells)
    masks = []
    for i, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
        x1, y1, x2, y2 = box_cells(flat, stride, height, width).unbind(1)
        # A box of a single cell is that cell, whole.
        single = ((x2 - x1) * (y2 - y1) == 1)[:, None]
        bumps = _bump(y1, y2, height, single)[:, :, None] * _bump(x1, x2, width, single)[:, None, :]
        bumps = bumps * (level == i)[:, None, None]
        blank = bumps.new_zeros(len(boxes), height, width)
        where = image[:, None, None].expand_as(bumps)
        masks.append(blank.scatter_reduce(0, where, bumps, "amax"))
    return masks


def full_mask(
    boxes: Sequence[Tensor], shapes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> list[Tensor]:
    """Ones everywhere: with it the object term is plain whole-map imitation, the all-neck control."""
    like = boxes[0]
    return [torch.ones(len(boxes), *shape, dtype=torch.float32, device=like.device) for shape in shapes]


def _flatten(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All boxes (N, 4) and the image each belongs to (N,) int64."""
    image = torch.cat(
        [torch.full((len(b),), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)]
    )
    return torch.cat(list(boxes)), image


def _fill(cells: Tensor, image: Tensor, keep: Tensor, images: int, shape: tuple[int, int]) -> Tensor:
    """Union of filled rectangles, (images, H, W).

    Corner marks, summed along both axes, give the number of boxes that a cell is in.

    The cost is that of the map plus that of the boxes, whatever the boxes' sizes.
    """
    height, width = shape
    x1, y1, x2, y2 = cells.unbind(1)
    mark = keep.to(torch.float32)
    corners = torch.zeros(images, height + 1, width + 1, dtype=torch.float32, device=cells.device)
    for y, x, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        corners.index_put_((image, y, x), sign * mark, accumulate=True)
    return (corners.cumsum(1).cumsum(2)[:, :height, :width] > 0.5).to(torch.float32)


def _bump(start: Tensor, end: Tensor, length: int, single: Tensor) -> Tensor:
    """exp(-((t - n / 2) / (n / 2))^2 / 2) over the n cells from start to end, 0 elsewhere: (N, length)."""
    offset = torch.arange(length, device=start.device) - start[:, None]
    half = (end - start).to(torch.float32)[:, None] / 2
    inside = (offset >= 0) & (offset < 2 * half)
    bump = torch.exp(-0.5 * ((offset - half) / half) ** 2)
    return torch.where(single, 1.0, bump) * inside

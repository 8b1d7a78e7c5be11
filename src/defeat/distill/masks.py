"""Which cells of a feature map are object, as pure functions of the boxes.

Sizes are in cells of the map, boxes are xyxy in pixels of the resized image. Everything is vectorised over
boxes and images, and nothing waits for the device. Masks come in the dtype of the boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    cells: float = 14.0
    """The least cells that an object spans on its level, see :func:`box_level`: the student's."""
    anchors: Sequence[Tensor] = ()
    """(A, 4) of each level: the student's anchors of the cell at the origin. Empty on backbone stages."""


Mask = Callable[[Grids], list[Tensor]]
"""One (B, H, W) mask in [0, 1] for each level."""


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


def object_mask(grids: Grids, *, cells: float | None = None) -> list[Tensor]:
    """DeFeat's neck mask (Eq. 4): 1 in the cells of the ground-truth boxes, each box on one level only.

    Args:
        grids: the boxes and the levels.
        cells: see :func:`box_level`; None takes that of the student's kind.

    Raises:
        ConfigError: strides that do not double from level to level.
    """
    flat, image = _flatten(grids.boxes)
    level = _level(flat, grids, cells)
    return [
        _fill(box_cells(flat, stride, *shape), image, level == i, grids, shape)
        for i, (shape, stride) in enumerate(zip(grids.shapes, grids.strides, strict=True))
    ]


def random_mask(grids: Grids, *, cells: float | None = None) -> list[Tensor]:
    """As many cells as :func:`object_mask` has on each level of each image, at random places.

    The control for the paper's claim that it matters which cells are told apart. Drawn from the device's
    random numbers, so that an image gets other cells in another process or in a batch of another size.
    """
    masks = []
    for mask in object_mask(grids, cells=cells):
        flat = mask.flatten(1)
        rank = torch.rand(flat.shape, device=flat.device).argsort(1).argsort(1)
        masks.append((rank < flat.sum(1, keepdim=True)).to(mask.dtype).reshape(mask.shape))
    return masks


def shared_mask(grids: Grids, *, stride: int = 4) -> list[Tensor]:
    """DeFeat's backbone mask: all boxes drawn once at ``stride``, resized by nearest to every map.

    Boxes do not choose a level here.
    """
    height, width = (side * grids.strides[0] // stride for side in grids.shapes[0])
    flat, image = _flatten(grids.boxes)
    everything = torch.ones_like(image, dtype=torch.bool)
    drawn = _fill(box_cells(flat, stride, height, width), image, everything, grids, (height, width))
    return [
        torch.nn.functional.interpolate(drawn[:, None], shape, mode="nearest")[:, 0] for shape in grids.shapes
    ]


def gaussian_mask(grids: Grids, *, cells: float | None = None) -> list[Tensor]:
    """TADF's mask (Sun et al. 2020): a Gaussian over each box on its level, the maximum where boxes overlap.

    Over the w x h cells of a box, ``exp(-((x - w/2) / (w/2))^2 / 2) exp(-((y - h/2) / (h/2))^2 / 2)``.
    """
    flat, image = _flatten(grids.boxes)
    level = _level(flat, grids, cells)
    masks = []
    for i, ((height, width), stride) in enumerate(zip(grids.shapes, grids.strides, strict=True)):
        x1, y1, x2, y2 = box_cells(flat, stride, height, width).unbind(1)
        # A box of a single cell is that cell, whole.
        single = ((x2 - x1) * (y2 - y1) == 1)[:, None]
        rows = _bump(y1, y2, height, single, flat.dtype)
        columns = _bump(x1, x2, width, single, flat.dtype)
        bumps = rows[:, :, None] * columns[:, None, :]
        masks.append(_union(bumps * (level == i)[:, None, None], image, grids))
    return masks


def fine_grained_mask(grids: Grids, *, threshold: float = 0.5, cells: float | None = None) -> list[Tensor]:
    """FGFI's mask (Wang et al. 2019): the cells whose anchors lie near an object, each box on its level.

    Per box, a cell is in when the IoU of any of its anchors exceeds ``threshold`` times the largest of the
    level; the union over boxes.

    Args:
        grids: the boxes and the levels, with anchors.
        threshold: phi, in [0, 1].
        cells: as for :func:`object_mask`.

    Raises:
        ValueError: the levels have no anchors.
    """
    if len(grids.anchors) != len(grids.strides):
        raise ValueError("the fine-grained mask needs the student's anchors, which pyramid levels have")
    flat, image = _flatten(grids.boxes)
    level = _level(flat, grids, cells)
    masks = []
    for i, (shape, stride, anchors) in enumerate(
        zip(grids.shapes, grids.strides, grids.anchors, strict=True)
    ):
        iou = _anchor_iou(flat, anchors.to(flat.dtype), stride, shape).amax(1)
        # A box that no anchor touches has no largest: with 0 > 0 it has no cells either.
        near = iou > threshold * iou.amax((1, 2), keepdim=True)
        masks.append(_union(near.to(flat.dtype) * (level == i)[:, None, None], image, grids))
    return masks


def full_mask(grids: Grids) -> list[Tensor]:
    """Ones everywhere: with it the object term is plain whole-map imitation, the all-neck control."""
    like = grids.boxes[0]
    return [
        torch.ones(len(grids.boxes), *shape, dtype=like.dtype, device=like.device) for shape in grids.shapes
    ]


def _level(boxes: Tensor, grids: Grids, cells: float | None) -> Tensor:
    first, strides = grids.strides[0], list(grids.strides)
    if strides != [first * 2**i for i in range(len(strides))]:
        raise ConfigError(
            f"levels of strides {strides} do not double from one to the next, so objects cannot be given to "
            "them: choose consecutive ones (distiller.terms.neck.strides), or a mask without levels"
        )
    return box_level(boxes, grids.strides[0], len(grids.strides), grids.cells if cells is None else cells)


def _union(maps: Tensor, image: Tensor, grids: Grids) -> Tensor:
    """Maximum over the boxes of each image: (N, H, W) to (B, H, W)."""
    blank = maps.new_zeros(len(grids.boxes), *maps.shape[1:])
    return blank.scatter_reduce(0, image[:, None, None].expand_as(maps), maps, "amax")


def _anchor_iou(boxes: Tensor, anchors: Tensor, stride: int, shape: tuple[int, int]) -> Tensor:
    """IoU of each box with the anchors of every cell, (N, A, H, W).

    The intersection is separable, which spares the four corners of N x A x H x W pairs.
    """
    height, width = shape
    x = torch.arange(width, device=boxes.device) * stride
    y = torch.arange(height, device=boxes.device) * stride
    across = _overlap(boxes[:, 0::2], anchors[:, 0::2], x)
    down = _overlap(boxes[:, 1::2], anchors[:, 1::2], y)
    both = down[:, :, :, None] * across[:, :, None, :]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    own = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    return both / (areas[:, None, None, None] + own[None, :, None, None] - both)


def _overlap(boxes: Tensor, anchors: Tensor, shifts: Tensor) -> Tensor:
    """Common length of (N, 2) intervals and (A, 2) intervals at each of L shifts, (N, A, L)."""
    start = torch.maximum(boxes[:, None, None, 0], anchors[None, :, None, 0] + shifts)
    end = torch.minimum(boxes[:, None, None, 1], anchors[None, :, None, 1] + shifts)
    return (end - start).clamp(min=0)


def _flatten(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All boxes (N, 4) and the image each belongs to (N,) int64."""
    image = torch.cat(
        [torch.full((len(b),), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)]
    )
    return torch.cat(list(boxes)), image


def _fill(cells: Tensor, image: Tensor, keep: Tensor, grids: Grids, shape: tuple[int, int]) -> Tensor:
    """Union of filled rectangles, (B, H, W).

    Corner marks, summed along both axes, give the number of boxes that a cell is in.

    The cost is that of the map plus that of the boxes, whatever the boxes' sizes.
    """
    height, width = shape
    x1, y1, x2, y2 = cells.unbind(1)
    mark = keep.to(torch.float32)
    corners = torch.zeros(len(grids.boxes), height + 1, width + 1, dtype=torch.float32, device=cells.device)
    for y, x, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        corners.index_put_((image, y, x), sign * mark, accumulate=True)
    return (corners.cumsum(1).cumsum(2)[:, :height, :width] > 0.5).to(grids.boxes[0].dtype)


def _bump(start: Tensor, end: Tensor, length: int, single: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(-((t - n / 2) / (n / 2))^2 / 2) over the n cells from start to end, 0 elsewhere: (N, length)."""
    offset = torch.arange(length, device=start.device) - start[:, None]
    half = (end - start).to(dtype)[:, None] / 2
    inside = (offset >= 0) & (offset < 2 * half)
    bump = torch.exp(-0.5 * ((offset - half) / half) ** 2)
    return torch.where(single, 1.0, bump) * inside

"""Masks that tell object cells of a feature map from background, as pure functions of the boxes.

Sizes are in cells of the map, boxes are xyxy in pixels of the resized image. Everything is vectorised over
boxes and images, and nothing waits for the device: a mask takes as many operations for 500 boxes as for one,
but for :func:`fine_grained_mask`, which takes large maps in parts. Masks come in the dtype of the boxes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from defeat.distill.grids import (
    Grids,
    cells_per_level,
    flatten_boxes,
    level_of_boxes,
    object_cells,
    place_boxes,
    split_levels,
)

Mask = Callable[[Grids], list[Tensor]]
"""One (B, H, W) mask in [0, 1] for each level."""

_BLOCK = 2**23
"""Pairs of anchor and box that :func:`fine_grained_mask` looks at together: 32 MiB a tensor in float32."""


def object_mask(grids: Grids, *, min_object_cells: float | None = None) -> list[Tensor]:
    """DeFeat's neck mask (Eq. 4): 1 in the cells of the ground-truth boxes, each box on one level only.

    Args:
        grids: the boxes and the levels.
        min_object_cells: see :func:`~defeat.distill.grids.box_level`; None takes that of the student's kind.

    Raises:
        ConfigError: strides that do not double from level to level.
    """
    boxes, image = flatten_boxes(grids.boxes)
    return _fill(boxes, image, level_of_boxes(boxes, grids, min_object_cells), grids)


def random_mask(grids: Grids, *, min_object_cells: float | None = None) -> list[Tensor]:
    """As many cells as :func:`object_mask` has on each level of each image, at random places.

    The control for the paper's claim that it matters which cells are told apart. Drawn from the device's
    random numbers, so that an image gets other cells in another process or in a batch of another size.
    """
    masks = []
    for mask in object_mask(grids, min_object_cells=min_object_cells):
        flat = mask.flatten(1)  # (B, H W)
        rank = torch.rand(flat.shape, device=flat.device).argsort(1).argsort(1)  # a permutation of each image
        masks.append((rank < flat.sum(1, keepdim=True)).to(mask.dtype).reshape(mask.shape))
    return masks


def shared_mask(grids: Grids, *, stride: int = 4) -> list[Tensor]:
    """DeFeat's backbone mask: all boxes drawn once at ``stride``, resized by nearest to every map.

    Boxes do not choose a level here.
    """
    height, width = (side * grids.strides[0] // stride for side in grids.shapes[0])
    boxes, image = flatten_boxes(grids.boxes)
    fine = grids._replace(shapes=[(height, width)], strides=[stride])
    (drawn,) = _fill(boxes, image, torch.zeros_like(image), fine)  # (B, height, width)
    return [
        torch.nn.functional.interpolate(drawn[:, None], shape, mode="nearest")[:, 0] for shape in grids.shapes
    ]


def gaussian_mask(grids: Grids, *, min_object_cells: float | None = None) -> list[Tensor]:
    """TADF's mask (Sun et al. 2020): a Gaussian over each box on its level, the maximum where boxes overlap.

    Over the w x h cells of a box, ``exp(-((x - w/2) / (w/2))^2 / 2) exp(-((y - h/2) / (h/2))^2 / 2)``.
    """
    boxes, image = flatten_boxes(grids.boxes)  # (N, 4), (N,)
    place = place_boxes(boxes, image, level_of_boxes(boxes, grids, min_object_cells), grids)
    x1, y1, x2, y2 = place.cells.unbind(1)  # (N,) each
    width, height = (x2 - x1)[:, None], (y2 - y1)[:, None]  # (N, 1)
    area = width * height
    # Boxes of fewer cells than the largest repeat theirs, which a maximum does not mind.
    cell = torch.arange(_most_cells(grids, min_object_cells), device=boxes.device) % area  # (N, C)
    x, y = cell % width, cell // width
    bump = _bump(x, width, boxes.dtype) * _bump(y, height, boxes.dtype)
    bump = torch.where(area == 1, 1.0, bump)  # a box of a single cell is that cell, whole
    index = (place.start + y1 * place.row + x1)[:, None] + y * place.row[:, None] + x  # (N, C)
    blank = boxes.new_zeros(sum(cells_per_level(grids)))
    return split_levels(blank.scatter_reduce(0, index.flatten(), bump.flatten(), "amax"), grids)


def fine_grained_mask(
    grids: Grids, *, threshold: float = 0.5, min_object_cells: float | None = None
) -> list[Tensor]:
    """FGFI's mask (Wang et al. 2019): the cells whose anchors lie near an object, each box on its level.

    Per box, a cell is in when the IoU of any of its anchors exceeds ``threshold`` times the largest of the
    level; the union over boxes.

    Args:
        grids: the boxes and the levels, with anchors.
        threshold: phi, in [0, 1].
        min_object_cells: as for :func:`object_mask`.

    Raises:
        ValueError: the levels have no anchors.
    """
    if len(grids.anchors) != len(grids.strides):
        raise ValueError("the fine-grained mask needs the student's anchors, which pyramid levels have")
    boxes, image = flatten_boxes(grids.boxes)
    level = level_of_boxes(boxes, grids, min_object_cells)
    of_image = image == torch.arange(len(grids.boxes), device=image.device)[:, None]  # (B, N)
    return [
        _near(boxes, of_image & (level == i), anchors.to(boxes.dtype), stride, shape, threshold)
        for i, (shape, stride, anchors) in enumerate(
            zip(grids.shapes, grids.strides, grids.anchors, strict=True)
        )
    ]


def full_mask(grids: Grids) -> list[Tensor]:
    """Ones everywhere: with it the object term is plain whole-map imitation, the all-neck control."""
    like = grids.boxes[0]
    return [
        torch.ones(len(grids.boxes), *shape, dtype=like.dtype, device=like.device) for shape in grids.shapes
    ]


def _fill(boxes: Tensor, image: Tensor, level: Tensor, grids: Grids) -> list[Tensor]:
    """Draw the union of the boxes as filled rectangles, each on its level: (B, H, W) for each level.

    Corner marks, summed along both axes, give the number of boxes that a cell is in. The cost is that of the
    maps plus that of the boxes, whatever the boxes' sizes.
    """
    place = place_boxes(boxes, image, level, grids, margin=1)
    x1, y1, x2, y2 = place.cells.unbind(1)
    upper, lower = place.start + y1 * place.row, place.start + y2 * place.row  # (N,) first cells of rows
    plus, minus = torch.cat([upper + x1, lower + x2]), torch.cat([upper + x2, lower + x1])  # (2 N,)
    # Whole numbers add up to the same in any order, so that atomic additions are deterministic.
    one = torch.ones_like(plus, dtype=torch.int32)
    corners = one.new_zeros(sum(cells_per_level(grids, 1)))
    corners = corners.index_add_(0, plus, one).index_add_(0, minus, one, alpha=-1)
    return [
        (marks.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)[:, :-1, :-1] > 0).to(boxes.dtype)
        for marks in split_levels(corners, grids, margin=1)
    ]


def _most_cells(grids: Grids, min_object_cells: float | None) -> int:
    """Return a number of cells that no box exceeds on its own level.

    A box below the top level has less than ``(2 min_object_cells)^2`` of them, and those it only touches: a
    row and a column more.
    """
    side = 2 * object_cells(grids, min_object_cells)
    height, width = grids.shapes[0]
    below = 1.05 * side**2 + height + width  # 5 %: boxes in half precision are rounded
    top = grids.shapes[-1][0] * grids.shapes[-1][1]
    return min(max(int(below), top), max(height * width for height, width in grids.shapes))


def _bump(offset: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute exp(-((t - n / 2) / (n / 2))^2 / 2) at cell t of n."""
    half = length.to(dtype) / 2
    return torch.exp(-0.5 * ((offset - half) / half) ** 2)


def _near(
    boxes: Tensor, chosen: Tensor, anchors: Tensor, stride: int, shape: tuple[int, int], threshold: float
) -> Tensor:
    """Mark the cells of one level that are near any of the chosen boxes, (B, H, W).

    Args:
        boxes: (N, 4).
        chosen: (B, N) bool, the boxes that count in each image.
        anchors: (A, 4) of the cell at the origin.
        stride: pixels per cell.
        shape: (H, W).
        threshold: share of a box's best IoU that a cell's best must exceed.
    """
    step = max(1, _BLOCK // (len(anchors) * shape[0] * shape[1]))  # n boxes at a time
    marked = torch.zeros(len(chosen), shape[0] * shape[1], dtype=torch.bool, device=boxes.device)  # (B, H W)
    for block, in_image in zip(boxes.split(step), chosen.to(boxes.dtype).split(step, dim=1), strict=True):
        iou = _anchor_iou(block, anchors, stride, shape).amax(1)  # (n, A, H, W) -> (n, H, W)
        # A box that no anchor touches has no largest: with 0 > 0 it has no cells either.
        near = iou > threshold * iou.amax((1, 2), keepdim=True)
        marked |= in_image @ near.flatten(1).to(in_image.dtype) > 0  # (B, n) @ (n, H W)
    return marked.to(boxes.dtype).reshape(len(chosen), *shape)


def _anchor_iou(boxes: Tensor, anchors: Tensor, stride: int, shape: tuple[int, int]) -> Tensor:
    """Return the IoU of each box with the anchors of every cell, (N, A, H, W).

    The intersection is separable, which spares the four corners of N x A x H x W pairs.
    """
    height, width = shape
    x = torch.arange(width, device=boxes.device) * stride
    y = torch.arange(height, device=boxes.device) * stride
    across = _overlap(boxes[:, 0::2], anchors[:, 0::2], x)  # (N, A, W)
    down = _overlap(boxes[:, 1::2], anchors[:, 1::2], y)  # (N, A, H)
    both = down[:, :, :, None] * across[:, :, None, :]  # (N, A, H, W)
    box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])  # (N,)
    anchor_areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])  # (A,)
    return both / (box_areas[:, None, None, None] + anchor_areas[None, :, None, None] - both)


def _overlap(boxes: Tensor, anchors: Tensor, shifts: Tensor) -> Tensor:
    """Return the common length of (N, 2) intervals and (A, 2) intervals at each of L shifts, (N, A, L)."""
    start = torch.maximum(boxes[:, None, None, 0], anchors[None, :, None, 0] + shifts)
    end = torch.minimum(boxes[:, None, None, 1], anchors[None, :, None, 1] + shifts)
    return (end - start).clamp(min=0)

"""Which cells of a feature map are object, as pure functions of the boxes.

Sizes are in cells of the map, boxes are xyxy in pixels of the resized image. Everything is vectorised over
boxes and images, and nothing waits for the device: a mask takes as many operations for 500 boxes as for one,
but for :func:`fine_grained_mask`, which takes large maps in parts. Masks come in the dtype of the boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    cells: float = 14.0
    """The least cells that an object spans on its level, see :func:`box_level`: the student's."""
    anchors: Sequence[Tensor] = ()
    """(A, 4) of each level: the student's anchors of the cell at the origin. Empty on backbone stages."""


Mask = Callable[[Grids], list[Tensor]]
"""One (B, H, W) mask in [0, 1] for each level."""

_BLOCK = 2**23
"""Pairs of anchor and box that :func:`fine_grained_mask` looks at together: 32 MiB a tensor in float32."""


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
    return _cells(boxes, *_to(boxes.device, [[stride], [height], [width]]))


def object_mask(grids: Grids, *, cells: float | None = None) -> list[Tensor]:
    """DeFeat's neck mask (Eq. 4): 1 in the cells of the ground-truth boxes, each box on one level only.

    Args:
        grids: the boxes and the levels.
        cells: see :func:`box_level`; None takes that of the student's kind.

    Raises:
        ConfigError: strides that do not double from level to level.
    """
    boxes, image = _flatten(grids.boxes)
    return _fill(boxes, image, _level(boxes, grids, cells), grids)


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
    boxes, image = _flatten(grids.boxes)
    fine = grids._replace(shapes=[(height, width)], strides=[stride])
    (drawn,) = _fill(boxes, image, torch.zeros_like(image), fine)
    return [
        torch.nn.functional.interpolate(drawn[:, None], shape, mode="nearest")[:, 0] for shape in grids.shapes
    ]


def gaussian_mask(grids: Grids, *, cells: float | None = None) -> list[Tensor]:
    """TADF's mask (Sun et al. 2020): a Gaussian over each box on its level, the maximum where boxes overlap.

    Over the w x h cells of a box, ``exp(-((x - w/2) / (w/2))^2 / 2) exp(-((y - h/2) / (h/2))^2 / 2)``.
    """
    boxes, image = _flatten(grids.boxes)
    place = _place(boxes, image, _level(boxes, grids, cells), grids)
    x1, y1, x2, y2 = place.cells.unbind(1)
    width, height = (x2 - x1)[:, None], (y2 - y1)[:, None]
    area = width * height
    # Boxes of fewer cells than the largest repeat theirs, which a maximum does not mind.
    cell = torch.arange(_most_cells(grids, cells), device=boxes.device) % area
    x, y = cell % width, cell // width
    bump = _bump(x, width, boxes.dtype) * _bump(y, height, boxes.dtype)
    bump = torch.where(area == 1, 1.0, bump)  # a box of a single cell is that cell, whole
    index = (place.start + y1 * place.row + x1)[:, None] + y * place.row[:, None] + x
    blank = boxes.new_zeros(sum(_sizes(grids)))
    return _maps(blank.scatter_reduce(0, index.flatten(), bump.flatten(), "amax"), grids)


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
    boxes, image = _flatten(grids.boxes)
    level = _level(boxes, grids, cells)
    of_image = image == torch.arange(len(grids.boxes), device=image.device)[:, None]
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


def _level(boxes: Tensor, grids: Grids, cells: float | None) -> Tensor:
    first, strides = grids.strides[0], list(grids.strides)
    if strides != [first * 2**i for i in range(len(strides))]:
        raise ConfigError(
            f"levels of strides {strides} do not double from one to the next, so objects cannot be given to "
            "them: choose consecutive ones (distiller.terms.neck.strides), or a mask without levels"
        )
    return box_level(boxes, grids.strides[0], len(grids.strides), grids.cells if cells is None else cells)


def _near(
    boxes: Tensor, chosen: Tensor, anchors: Tensor, stride: int, shape: tuple[int, int], threshold: float
) -> Tensor:
    """Cells of one level that are near any of the chosen boxes, (B, H, W); ``chosen`` is (B, N) bool."""
    step = max(1, _BLOCK // (len(anchors) * shape[0] * shape[1]))
    found = torch.zeros(len(chosen), shape[0] * shape[1], dtype=torch.bool, device=boxes.device)
    for part, own in zip(boxes.split(step), chosen.to(boxes.dtype).split(step, dim=1), strict=True):
        iou = _anchor_iou(part, anchors, stride, shape).amax(1)
        # A box that no anchor touches has no largest: with 0 > 0 it has no cells either.
        near = iou > threshold * iou.amax((1, 2), keepdim=True)
        found |= own @ near.flatten(1).to(own.dtype) > 0
    return found.to(boxes.dtype).reshape(len(chosen), *shape)


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
    counts = [len(own) for own in boxes]
    image = torch.arange(len(boxes)).repeat_interleave(torch.tensor(counts), output_size=sum(counts))
    flat = torch.cat(list(boxes))
    return flat, image.to(flat.device, non_blocking=True)


def _to(device: torch.device, table: Sequence[Sequence[int]]) -> Tensor:
    """Numbers that the host knows, on the device, int64; nothing waits."""
    return torch.tensor(table).to(device, non_blocking=True)


class _Place(NamedTuple):
    """Where boxes lie, each on its own level, when the maps of all levels are laid end to end."""

    cells: Tensor
    """(N, 4), see :func:`box_cells`."""
    start: Tensor
    """(N,) index of the first cell of the image's map."""
    row: Tensor
    """(N,) cells from one row of that map to the next."""


def _place(boxes: Tensor, image: Tensor, level: Tensor, grids: Grids, margin: int = 0) -> _Place:
    """Put every box on its level; maps have ``margin`` more rows and columns than their levels."""
    first = [0, *accumulate(_sizes(grids, margin))][:-1]
    heights, widths = zip(*grids.shapes, strict=True)
    table = _to(boxes.device, [grids.strides, heights, widths, first])
    stride, height, width, start = table[:, level]
    row = width + margin
    return _Place(_cells(boxes, stride, height, width), start + image * (height + margin) * row, row)


def _cells(boxes: Tensor, stride: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """:func:`box_cells` with numbers of each box, (N,), or of all, (1,)."""
    cells = (boxes / stride[:, None]).long().clamp(min=0)
    size = torch.stack([width, height], dim=1)
    start, end = torch.minimum(cells[:, :2], size - 1), torch.minimum(cells[:, 2:], size)
    single = (end <= start).any(1, keepdim=True)
    return torch.cat([start, torch.where(single, start + 1, end)], dim=1)


def _sizes(grids: Grids, margin: int = 0) -> list[int]:
    """Cells of each level in all images together."""
    return [len(grids.boxes) * (height + margin) * (width + margin) for height, width in grids.shapes]


def _maps(flat: Tensor, grids: Grids, margin: int = 0) -> list[Tensor]:
    """Maps laid end to end as (B, H + margin, W + margin) for each level."""
    parts = flat.split(_sizes(grids, margin))
    return [
        part.view(len(grids.boxes), height + margin, width + margin)
        for part, (height, width) in zip(parts, grids.shapes, strict=True)
    ]


def _fill(boxes: Tensor, image: Tensor, level: Tensor, grids: Grids) -> list[Tensor]:
    """Union of the boxes as filled rectangles, each on its level, (B, H, W) for each level.

    Corner marks, summed along both axes, give the number of boxes that a cell is in. The cost is that of the
    maps plus that of the boxes, whatever the boxes' sizes.
    """
    place = _place(boxes, image, level, grids, margin=1)
    x1, y1, x2, y2 = place.cells.unbind(1)
    upper, lower = place.start + y1 * place.row, place.start + y2 * place.row
    plus, minus = torch.cat([upper + x1, lower + x2]), torch.cat([upper + x2, lower + x1])
    # Whole numbers add up to the same in any order, so that atomic additions are deterministic.
    one = torch.ones_like(plus, dtype=torch.int32)
    corners = one.new_zeros(sum(_sizes(grids, 1)))
    corners = corners.index_add_(0, plus, one).index_add_(0, minus, one, alpha=-1)
    return [
        (marks.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)[:, :-1, :-1] > 0).to(boxes.dtype)
        for marks in _maps(corners, grids, margin=1)
    ]


def _most_cells(grids: Grids, cells: float | None) -> int:
    """A number of cells that no box exceeds on its own level.

    A box below the top level has less than ``(2 cells)^2`` of them, and those it only touches: a row and a
    column more.
    """
    own = grids.cells if cells is None else cells
    height, width = grids.shapes[0]
    below = 1.05 * (2 * own) ** 2 + height + width  # 5 %: boxes in half precision are rounded
    top = grids.shapes[-1][0] * grids.shapes[-1][1]
    return min(max(int(below), top), max(height * width for height, width in grids.shapes))


def _bump(offset: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(-((t - n / 2) / (n / 2))^2 / 2) at cell t of n."""
    half = length.to(dtype) / 2
    return torch.exp(-0.5 * ((offset - half) / half) ** 2)

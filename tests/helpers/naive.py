"""Every published formula once more, as loops over plain numbers: what the real functions must equal.

Written from the papers' text, with nothing of the package and no tensors: maps are lists of rows, features
are ``[image][channel][row][column]``, boxes are ``[x1, y1, x2, y2]``. Slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Box = Sequence[float]
Boxes = Sequence[Sequence[Box]]
"""Those of each image."""
Map = list[list[list[float]]]
"""[image][row][column]"""
Features = Sequence[Sequence[Sequence[Sequence[float]]]]
Rows = Sequence[Sequence[float]]


class Both(NamedTuple):
    """Object and background."""

    object: float
    background: float


# --- masks -----------------------------------------------------------------------------------------------


def level_of(box: Box, first_stride: int, levels: int, cells: float) -> int:
    x1, y1, x2, y2 = box
    size = math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1))
    return min(max(math.floor(math.log2(size / (cells * first_stride) + 1e-6)), 0), levels - 1)


def cells_of(box: Box, stride: int, height: int, width: int) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 in cells, the last two exclusive."""
    x1, y1, x2, y2 = (int(v / stride) for v in box)
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    x2, y2 = min(max(x2, 0), width), min(max(y2, 0), height)
    if x1 >= x2 or y1 >= y2:
        return x1, y1, x1 + 1, y1 + 1
    return x1, y1, x2, y2


def object_mask(
    boxes: Boxes, shapes: Sequence[tuple[int, int]], strides: Sequence[int], cells: float = 14.0
) -> list[Map]:
    masks = [_blank(len(boxes), *shape) for shape in shapes]
    for image, own in enumerate(boxes):
        for box in own:
            level = level_of(box, strides[0], len(strides), cells)
            x1, y1, x2, y2 = cells_of(box, strides[level], *shapes[level])
            for y in range(y1, y2):
                for x in range(x1, x2):
                    masks[level][image][y][x] = 1.0
    return masks


def gaussian_mask(
    boxes: Boxes, shapes: Sequence[tuple[int, int]], strides: Sequence[int], cells: float = 14.0
) -> list[Map]:
    """TADF."""
    masks = [_blank(len(boxes), *shape) for shape in shapes]
    for image, own in enumerate(boxes):
        for box in own:
            level = level_of(box, strides[0], len(strides), cells)
            x1, y1, x2, y2 = cells_of(box, strides[level], *shapes[level])
            w, h = x2 - x1, y2 - y1
            for y in range(h):
                for x in range(w):
                    value = math.exp(-0.5 * ((x - w / 2) / (w / 2)) ** 2) * math.exp(
                        -0.5 * ((y - h / 2) / (h / 2)) ** 2
                    )
                    row = masks[level][image][y1 + y]
                    row[x1 + x] = max(row[x1 + x], 1.0 if w == h == 1 else value)
    return masks


def shared_mask(
    boxes: Boxes, shapes: Sequence[tuple[int, int]], strides: Sequence[int], stride: int = 4
) -> list[Map]:
    """All boxes at one stride, then the nearest cell of that map for each cell of the others."""
    height, width = (side * strides[0] // stride for side in shapes[0])
    fine = _blank(len(boxes), height, width)
    for image, own in enumerate(boxes):
        for box in own:
            x1, y1, x2, y2 = cells_of(box, stride, height, width)
            for y in range(y1, y2):
                for x in range(x1, x2):
                    fine[image][y][x] = 1.0
    return [
        [[[one[y * height // h][x * width // w] for x in range(w)] for y in range(h)] for one in fine]
        for h, w in shapes
    ]


def fine_grained_mask(
    boxes: Boxes,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    anchors: Sequence[Sequence[Box]],
    cells: float = 14.0,
    threshold: float = 0.5,
) -> list[Map]:
    """FGFI; ``anchors`` are those of the cell at the origin, level by level."""
    masks = [_blank(len(boxes), *shape) for shape in shapes]
    for image, own in enumerate(boxes):
        for box in own:
            level = level_of(box, strides[0], len(strides), cells)
            height, width = shapes[level]
            overlaps = {}
            for y in range(height):
                for x in range(width):
                    for k, (x1, y1, x2, y2) in enumerate(anchors[level]):
                        dx, dy = x * strides[level], y * strides[level]
                        overlaps[y, x, k] = iou(box, (x1 + dx, y1 + dy, x2 + dx, y2 + dy))
            best = max(overlaps.values())
            for (y, x, _), overlap in overlaps.items():
                if overlap > threshold * best:
                    masks[level][image][y][x] = 1.0
    return masks


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Whole pixels around the origin, one per height / width ratio and size, all of the same area."""
    found = []
    for ratio in ratios:
        for size in sizes:
            x, y = round(size / math.sqrt(ratio) / 2), round(size * math.sqrt(ratio) / 2)
            found.append((float(-x), float(-y), float(x), float(y)))
    return found


def full_mask(boxes: Boxes, shapes: Sequence[tuple[int, int]]) -> list[Map]:
    return [[[[1.0] * w for _ in range(h)] for _ in boxes] for h, w in shapes]


def iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _blank(images: int, height: int, width: int) -> Map:
    return [[[0.0] * width for _ in range(height)] for _ in range(images)]


# --- features --------------------------------------------------------------------------------------------


def conv3x3(x: Features, weight: Features, bias: Sequence[float], relu: bool = False) -> list[Map]:
    """The adaptation layer: 3x3, padding 1."""
    height, width = len(x[0][0]), len(x[0][0][0])

    def at(image: int, out: int, row: int, column: int) -> float:
        total = bias[out]
        for channel, kernel in enumerate(weight[out]):
            for i in range(3):
                for j in range(3):
                    y, z = row + i - 1, column + j - 1
                    if 0 <= y < height and 0 <= z < width:
                        total += kernel[i][j] * x[image][channel][y][z]
        return max(total, 0.0) if relu else total

    return [
        [[[at(n, o, y, z) for z in range(width)] for y in range(height)] for o in range(len(weight))]
        for n in range(len(x))
    ]


def feature_loss(student: Features, teacher: Features, mask: Map) -> Both:
    """Eq. 4-5 on one level, without weights. N counts elements: cells times channels."""
    object_sum = background_sum = object_elements = background_elements = 0.0
    for image in range(len(student)):
        for channel in range(len(student[image])):
            for y in range(len(student[image][channel])):
                for x in range(len(student[image][channel][y])):
                    error = (student[image][channel][y][x] - teacher[image][channel][y][x]) ** 2
                    m = mask[image][y][x]
                    object_sum += m * error
                    object_elements += m
                    background_sum += (1 - m) * error
                    background_elements += 1 - m
    return Both(object_sum / max(1, 2 * object_elements), background_sum / max(1, 2 * background_elements))


def mean_over_levels(each: Sequence[Both]) -> Both:
    return Both(sum(x.object for x in each) / len(each), sum(x.background for x in each) / len(each))


# --- class scores ----------------------------------------------------------------------------------------


def softmax_kl(student: Sequence[float], teacher: Sequence[float], temperature: float) -> float:
    """T^2 sum_c q_c (log q_c - log p_c) of one proposal."""

    def softmax(logits: Sequence[float]) -> list[float]:
        exps = [math.exp((v - max(logits)) / temperature) for v in logits]
        return [e / sum(exps) for e in exps]

    p, q = softmax(student), softmax(teacher)
    return temperature**2 * sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))


def sigmoid_kl(student: Sequence[float], teacher: Sequence[float], temperature: float) -> float:
    """The same for one anchor whose classes are yes or no each."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = 1 / (1 + math.exp(-s / temperature)), 1 / (1 + math.exp(-t / temperature))
        no_p, no_q = 1 / (1 + math.exp(s / temperature)), 1 / (1 + math.exp(t / temperature))
        total += q * math.log(q / p) + no_q * math.log(no_q / no_p)
    return temperature**2 * total


Divergence = Callable[[Sequence[float], Sequence[float], float], float]


def decoupled(
    divergence: Divergence,
    student: Rows,
    teacher: Rows,
    is_object: Sequence[bool],
    is_background: Sequence[bool],
    object_temperature: float = 1.0,
    background_temperature: float = 1.0,
    pooled: bool = False,
) -> Both:
    """Eq. 6-9: the mean over object and the mean over background rows; pooled, both over all rows."""
    totals, counts = [0.0, 0.0], [0, 0]
    for i in range(len(student)):
        if is_object[i]:
            totals[0] += divergence(student[i], teacher[i], object_temperature)
            counts[0] += 1
        elif is_background[i]:
            totals[1] += divergence(student[i], teacher[i], background_temperature)
            counts[1] += 1
    if pooled:
        counts = [len(student)] * 2
    return Both(*(total / n if n else 0.0 for total, n in zip(totals, counts, strict=True)))


def proposal_is_object(proposals: Sequence[Box], boxes: Sequence[Box], threshold: float = 0.5) -> list[bool]:
    """Faster R-CNN's rule for the proposals of one image: an IoU of 0.5 with a box."""
    return [any(iou(proposal, box) >= threshold for box in boxes) for proposal in proposals]


def match_anchors(
    anchors: Sequence[Box], boxes: Sequence[Box], high: float = 0.5, low: float = 0.4
) -> tuple[list[bool], list[bool]]:
    """RetinaNet's rule for the anchors of one image: positive and negative, the rest is neither.

    Every box also keeps the anchors that overlap it most, however little that is.
    """
    positive, negative = [], []
    most = [max(iou(anchor, box) for anchor in anchors) for box in boxes]
    for anchor in anchors:
        overlaps = [iou(anchor, box) for box in boxes]
        best = max(overlaps, default=0.0)
        kept = any(overlap == top for overlap, top in zip(overlaps, most, strict=True))
        positive.append(best >= high or kept)
        negative.append(best < low and not kept)
    return positive, negative


def anchors_of(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], anchors: Sequence[Sequence[Box]]
) -> Iterator[Box]:
    """All anchors of an image: levels, rows, columns, and the anchors of a cell."""
    for (height, width), stride, own in zip(shapes, strides, anchors, strict=True):
        for y in range(height):
            for x in range(width):
                for x1, y1, x2, y2 in own:
                    yield (x1 + x * stride, y1 + y * stride, x2 + x * stride, y2 + y * stride)

"""Annotations that can be read, but are probably not what was meant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from defeat.errors import DataError
from defeat.io.text import one_line
from defeat.types import Annotations, Problem

_log = logging.getLogger(__name__)

MOST = 0.5
"""With more boxes than this out of their pictures or in the first pixel, the file as a whole is wrong."""

MANY = 0.25
"""With more boxes than this without width or height, corners stand where sizes are read, or the reverse."""

SOME = 0.01
"""With more boxes than this below a pixel; in COCO and LVIS it is one in a thousand."""

FEW_BOXES = 50
"""Fewer boxes than this may all end within 100 pixels by chance."""

FIRST = 100
"""Boxes among which the first pictures with wrong ones are looked for."""


BoxOrder = Literal["xywh", "cxcywh", "xyxy"]
"""The numbers that a format writes for a box: from the corner (COCO), the centre (YOLO), or corners (VOC)."""

_NUMBERS: dict[BoxOrder, str] = {
    "xywh": "x, y, width, height",
    "cxcywh": "x and y of the centre, width, height",
    "xyxy": "x1, y1, x2, y2",
}

NameOf = Callable[[int], str]
"""Gives the name of the picture of a box, by the position of the box."""


def box_problems(
    boxes: NDArray[np.float64],
    width: NDArray[np.int64],
    height: NDArray[np.int64],
    name_of: NameOf,
    order: BoxOrder = "xywh",
) -> Iterator[Problem]:
    """Find out from all boxes of a file, before they are cleaned, whether they are in other units or order.

    Args:
        boxes: (N, 4) as they were read, xyxy pixels.
        width: (N,) width of the image of each box, pixels.
        height: (N,) the same for its height.
        name_of: gives the name of a box's picture; only those of the first wrong boxes are asked for.
        order: the numbers of a box in the file; ``cxcywh`` are shares of width and height.
    """
    if not len(boxes):
        return
    size = np.stack([width, height], axis=1)  # (N, 2)
    problem = _wrong_units(boxes, size, name_of, order) or _wrong_order(boxes, size, name_of, order)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)  # (N,)
    small = (sides > 0) & (sides < 1)
    if problem:
        yield problem._replace(of_boxes=True)
    elif small.sum() > SOME * len(boxes):
        yield Problem(
            f"{_count(small, name_of)} are less than a pixel wide or high",
            "see that they are those of the pictures as annotated, and remove what nobody can see",
            severe=False,
            of_boxes=True,
        )


def _wrong_units(
    boxes: NDArray[np.float64], size: NDArray[np.int64], name_of: NameOf, order: BoxOrder
) -> Problem | None:
    ends = boxes[:, 2:]  # (N, 2) right and lower border
    first: NDArray[np.bool_] = np.all(ends <= 1.05, axis=1)
    if first.mean() > MOST:
        count = f"{_count(first, name_of)} end within the first pixel of their picture"
        if order == "cxcywh":
            return Problem(count, "see that they are shares of width and height, divided once", severe=False)
        return Problem(
            f"{count}: they seem to be normalised, as shares of width and height in 0..1",
            "multiply them by width and height: boxes are in pixels",
            severe=False,
        )
    for scale, unit in ((100, "percent"), (1000, "thousandths")):
        larger = (size.min(axis=1) > 1.25 * scale).all()
        fits = ends.max() <= scale + 1 and (ends.max(axis=0) > 0.9 * scale).all()
        if larger and fits and len(boxes) >= FEW_BOXES and order != "cxcywh":
            return Problem(
                f"all {len(boxes)} boxes end within {scale} pixels, though all pictures are larger: they "
                f"seem to be in {unit} of width and height",
                "convert them: boxes are in pixels",
                severe=False,
            )
    return None


def _wrong_order(
    boxes: NDArray[np.float64], size: NDArray[np.int64], name_of: NameOf, order: BoxOrder
) -> Problem | None:
    slack = 1 + 0.01 * size
    corner, end = boxes[:, :2], boxes[:, 2:]  # (N, 2) each
    beyond: NDArray[np.bool_] = np.any(end > size + slack, axis=1)  # (N,)
    before: NDArray[np.bool_] = np.any(corner < -slack, axis=1)
    flat: NDArray[np.bool_] = np.any(end <= corner, axis=1)
    meant = None if order == "xyxy" else _meant_order(boxes, size, slack, order)
    if meant or (beyond | before).mean() > MOST:
        seems = f": they seem to be {_NUMBERS[meant]} where {_NUMBERS[order]} is read" if meant else ""
        return Problem(
            f"{_count(beyond | before, name_of)} reach out of their pictures{seems}",
            "correct the boxes, or the width and height of the images",
            severe=False,
        )
    if flat.mean() > MANY:
        cause = f"{_count(flat, name_of)} have no width or height"
        return Problem(cause, f"see that the numbers of each box are {_NUMBERS[order]}", severe=False)
    return None


def _meant_order(
    boxes: NDArray[np.float64], size: NDArray[np.int64], slack: NDArray[np.floating[Any]], order: BoxOrder
) -> BoxOrder | None:
    """Find the order by which nearly all boxes would lie in their pictures, where many do not now.

    Args:
        boxes: (N, 4) xyxy pixels, made of a point and two sides.
        size: (N, 2) width and height of the pictures.
        slack: (N, 2) pixels by which a box may reach out.
        order: ``xywh``, where the point is the corner, or ``cxcywh``, where it is the centre.
    """
    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]  # (N, 2) each
    by_centre = order == "cxcywh"
    point = corner + sides / 2 if by_centre else corner
    beyond = np.any(boxes[:, 2:] > size + slack, axis=1)  # (N,)
    before = np.any(corner < -slack, axis=1)
    are_corners = (sides > point).all(axis=1) & (sides <= size + slack).all(axis=1)
    if are_corners.mean() > 0.98 and (beyond | before).mean() > MANY:
        return "xyxy"
    # read by the corner, boxes given by the centre reach out on the right and below alone, and the reverse
    out, never = (before, beyond) if by_centre else (beyond, before)
    low = point if by_centre else point - sides / 2
    fits = (low >= -slack).all(axis=1) & (low + sides <= size + slack).all(axis=1)
    if fits.mean() > 0.995 and out.sum() >= 5 and out.mean() > 0.05 and not never.any():
        return "xywh" if by_centre else "cxcywh"
    return None


def _count(wrong: NDArray[np.bool_], name_of: NameOf) -> str:
    """Write how many of how many boxes are wrong, and the pictures of the first."""
    places = np.flatnonzero(wrong)
    names = list(dict.fromkeys(name_of(place) for place in places[:FIRST].tolist()))[:3]
    return f"{len(places)} of {len(wrong)} boxes (first in {', '.join(names)})"


def crowding_problems(annotations: Annotations, max_dets: int) -> Iterator[Problem]:
    """Tell of images with more objects than detections count for COCO's figures: AP cannot reach 1."""
    counts = {record.path.name: int((~record.ignore).sum()) for record in annotations.records}
    crowded = {name: count for name, count in counts.items() if count > max_dets}
    if crowded:
        fullest = max(crowded, key=lambda name: crowded[name])
        yield Problem(
            f"{len(crowded)} of {len(annotations.records)} images have more than {max_dets} objects, such as "
            f"{fullest} with {crowded[fullest]}: the COCO figures count {max_dets} detections of an image "
            "and class, and detectors give no more than that of an image",
            f"raise evaluation.max_dets to {crowded[fullest]}",
            severe=False,
        )


@rank_zero_only
def log_problems(source: str, problems: Iterable[Problem]) -> None:
    """Warn of each problem in a line of its own; all processes of a training find the same ones."""
    for problem in problems:
        _log.warning("%s", one_line(f"{source}: {problem.cause}: {problem.remedy}"))


def refuse(where: str, problems: Iterable[Problem]) -> None:
    """Raise :class:`DataError` for the first problem that a training cannot do without being mended."""
    for problem in problems:
        if problem.severe:
            raise DataError(one_line(f"{where}: {problem.cause}: {problem.remedy}"))

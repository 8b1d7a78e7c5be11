"""Cleaning of annotated boxes: clipped to their image; dropped where nothing of them is left."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 1e-3
"""Pixels. Small enough to keep every real object (evaluation counts them all), large enough that a side does
not vanish when a float32 coordinate of a few thousand pixels is scaled."""

ROUNDING = 0.05
"""Pixels. COCO rounds to 0.01, so x + width may pass the border by as much: cut off, not worth a report."""


class CleanBoxes(NamedTuple):
    """The result of :func:`clean_boxes`."""

    boxes: NDArray[np.float32]
    """(M, 4) xyxy pixels, inside their images, each side at least ``MIN_SIDE``."""
    kept: NDArray[np.bool_]
    """(N,) bool, true for each of the given boxes that is left."""
    counts: dict[str, int]
    """``boxes clipped``, ``degenerate boxes dropped`` and ``boxes outside dropped``."""


def clean_boxes(
    boxes: NDArray[np.floating], width: NDArray[np.integer], height: NDArray[np.integer]
) -> CleanBoxes:
    """Clip boxes to their images, and drop those without width or height and those outside.

    Doing it again changes nothing.

    Args:
        boxes: (N, 4) xyxy pixels, finite.
        width: (N,) or () width of the image of each box, pixels.
        height: (N,) or () the same for its height.

    Returns:
        The boxes that are left, which they are, and the counts by reason.
    """
    exact = boxes.reshape(-1, 4).astype(np.float64)
    limits = np.stack(np.broadcast_arrays(width, height, width, height), axis=-1).astype(np.float64)
    clipped = np.clip(exact, 0.0, limits).astype(np.float32)
    degenerate = _shorter_side(exact) < MIN_SIDE
    outside = ~degenerate & (_shorter_side(clipped) < MIN_SIDE)
    kept = ~degenerate & ~outside
    moved = kept & (np.abs(exact - clipped) > ROUNDING).any(axis=1)
    counts = {
        "boxes clipped": moved,
        "degenerate boxes dropped": degenerate,
        "boxes outside dropped": outside,
    }
    return CleanBoxes(clipped[kept], kept, {reason: int(mask.sum()) for reason, mask in counts.items()})


def _shorter_side(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = boxes.astype(np.float64)
    shorter: NDArray[np.float64] = np.minimum(wide[:, 2] - wide[:, 0], wide[:, 3] - wide[:, 1])
    return shorter

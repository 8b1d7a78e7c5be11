"""Average precision: the area under a precision-recall curve, by the rules of COCO and of Pascal VOC."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.integer]

COCO_RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""The recalls at which COCO reads the curve. That its 0.29 is a bit above 29 / 100 is part of the rule."""

VOC_RECALLS: Floats = (
    np.arange(11) / 10
)  # by division: 0.1 * 3 is above 0.3, so a recall of 3 / 10 would miss it
"""The recalls at which VOC2007 reads the curve."""


def average_precision(
    hits: Integers, counted: Integers, positives: Floats, recalls: Floats | None = COCO_RECALLS
) -> Floats:
    """Average the best precision at each recall or above, for R weightings of the images at once.

    Only the places of the true positives are needed: between two of them recall stays and precision falls.

    Args:
        hits: (M, R) number of true positives up to and with each of M true positives, best first.
        counted: (M, R) number of true and false positives up to and with each of them.
        positives: (R,) number of ground truth boxes to find.
        recalls: (L,) rising recalls to read the curve at; None integrates the whole curve, as VOC2010 does.

    Returns:
        (R,) in [0, 1]; nan where there is nothing to find.

    Example:
        Two of two boxes are found, with a false positive between them:

        >>> average_precision(np.array([[1], [2]]), np.array([[1], [3]]), np.array([2.0])).round(4)
        array([0.835])
    """
    to_find = positives > 0
    if not len(hits):
        return np.where(to_find, 0.0, np.nan)
    precision = hits / np.maximum(counted, 1)  # (M, R)
    best_from_here = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = hits / np.where(to_find, positives, 1.0)  # (M, R)
    if recalls is None:
        area = (np.diff(recall, axis=0, prepend=0.0) * best_from_here).sum(axis=0)
    else:
        reached = np.searchsorted(recalls, recall.ravel(), side="right").reshape(recall.shape)
        area = (np.diff(reached, axis=0, prepend=0) * best_from_here).sum(axis=0) / len(recalls)
    return np.where(to_find, area, np.nan)


def average_precision_of_hits(hit: Bools, positives: int, recalls: Floats | None = COCO_RECALLS) -> float:
    """Compute the average precision of one class.

    Args:
        hit: (N,) whether each detection, best first, is a true positive; the others are false positives.
        positives: number of ground truth boxes to find.
        recalls: see :func:`average_precision`.

    Returns:
        A number in [0, 1]; nan where there is nothing to find.
    """
    counted = np.flatnonzero(hit)[:, None] + 1  # (M, 1)
    hits = np.arange(1, len(counted) + 1)[:, None]  # (M, 1)
    return float(average_precision(hits, counted, np.array([positives], dtype=np.float64), recalls)[0])

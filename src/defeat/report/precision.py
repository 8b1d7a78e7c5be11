"""Average precision from counts, for many weightings of the images at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defeat.report.overlap import Floats

Integers = NDArray[np.integer]

RECALLS = np.linspace(0.0, 1.0, 101)
"""Where COCO reads the precision-recall curve. That its 0.29 is a bit above 29 / 100 is part of the rule."""


def average_precision(found: Integers, counted: Integers, positives: Floats) -> Floats:
    """Mean over 101 recalls of the best precision at that recall or above.

    Only the places of the true positives are needed: between two of them recall stays and precision falls.

    Args:
        found: (M, R) how many true positives there are up to and with each of M true positives, best first.
        counted: (M, R) how many true and false positives there are up to there.
        positives: (R,) how many there are to find.

    Returns:
        (R,) in [0, 1]; nan where there is nothing to find.

    Example:
        Two of two found, a false positive between them:

        >>> average_precision(np.array([[1], [2]]), np.array([[1], [3]]), np.array([2.0])).round(4)
        array([0.835])
    """
    to_find = positives > 0
    if not len(found):
        return np.where(to_find, 0.0, np.nan)
    precision = found / np.maximum(counted, 1)
    best_from_here = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = found / np.where(to_find, positives, 1.0)
    reached = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)
    newly_reached = np.diff(reached, axis=0, prepend=0)
    area = (newly_reached * best_from_here).sum(axis=0) / len(RECALLS)
    return np.where(to_find, area, np.nan)

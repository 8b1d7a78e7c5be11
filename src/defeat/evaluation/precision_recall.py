"""Curves of precision over recall, class by class and in the mean, as the COCO metrics read them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from defeat.evaluation.average_precision import COCO_RECALLS, Floats
from defeat.evaluation.coco_metrics import CocoCurves

IOUS = np.linspace(0.5, 0.95, 10).round(2)
"""The IoU thresholds of the COCO metrics."""


class PrecisionRecall(NamedTuple):
    """One curve at one IoU, over objects of all sizes. Its mean precision is the AP at that IoU."""

    precision: Floats
    """(101,) at the recalls 0, 0.01, ... 1: the best at that recall or above, 0 where it is not reached."""
    scores: Floats
    """(101,) falling: the score from which on detections count there; 0 where the recall is not reached."""
    positives: int
    """Number of ground truth boxes to find."""

    def at_thresholds(self, thresholds: Floats) -> tuple[Floats, Floats]:
        """Read the curve by score.

        Args:
            thresholds: (N,) scores from which on detections count.

        Returns:
            (N,) precision and (N,) recall, to the last recall of the 101 that is reached; 0 and 0 where
            nothing is found.
        """
        reached = (self.scores >= thresholds[:, None]) & (self.precision > 0)  # (N, 101)
        last = reached.sum(axis=1) - 1
        found = last >= 0
        return np.where(found, self.precision[last], 0.0), np.where(found, COCO_RECALLS[last], 0.0)


def precision_recall(curves: CocoCurves, iou: float, label: int | None = None) -> PrecisionRecall | None:
    """Take one curve out of an evaluation.

    Args:
        curves: the evaluation.
        iou: one of :data:`IOUS`.
        label: of the class, from 1 on; None for the mean over the classes that have ground truth.

    Returns:
        None where there is no ground truth to measure by.
    """
    at = int(np.flatnonzero(iou == IOUS)[0])
    measured = curves.precision[:, at, 0, 0] >= 0  # (K,)
    if label is not None:
        measured &= np.arange(1, len(measured) + 1) == label
    if not measured.any():
        return None
    precision, scores = (
        values[measured, at, :, 0].mean(axis=0) for values in (curves.precision, curves.scores)
    )
    return PrecisionRecall(precision, scores, int(curves.positives[measured].sum()))

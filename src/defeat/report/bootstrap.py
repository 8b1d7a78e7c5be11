"""The COCO figures of resampled images (Efron 1979), from matches that were made once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defeat.evaluation.average_precision import Bools, Floats, average_precision
from defeat.evaluation.matching import Integers
from defeat.report.class_matches import AREAS, IOU_THRESHOLDS, ClassMatches

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""The figures that are resampled, in the order of the columns."""

Counts = NDArray[np.int32]

_MAX_CELLS = 4_000_000  # detections times resamples that are held at once, 16 MB an array


def draw_weights(images: int, resamples: int, seed: int) -> Counts:
    """Draw images with replacement, as often as there are images.

    Returns:
        (I, R) int32: how often each image comes in each resample.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.ascontiguousarray(drawn.T, dtype=np.int32)


def resampled_figures(matches: Sequence[ClassMatches], weights: Counts) -> Floats:
    """Compute :data:`FIGURES` with each image counted as often as its weight says.

    Weights of one give the figures of :func:`defeat.evaluation.coco_metrics.coco_metrics`; others give those
    of a list in which images stand so often, copies one after the other. Two detections of one image, class
    and score are the one exception: here all copies of the first come before those of the second.

    Args:
        matches: one for each class.
        weights: (I, R).

    Returns:
        (R, 6) in [0, 1], means over the classes that have ground truth in a resample; nan where none has.
    """
    figures = np.stack([_class_figures(of_class, weights) for of_class in matches])  # (K, R, 6)
    there = ~np.isnan(figures)
    total, count = np.where(there, figures, 0.0).sum(axis=0), there.sum(axis=0)
    mean: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _class_figures(matches: ClassMatches, weights: Counts) -> Floats:
    """(R, 6) of one class, in slices of resamples that fit the memory."""
    width = max(1, _MAX_CELLS // max(1, len(matches.image)))
    slices = [weights[:, i : i + width] for i in range(0, weights.shape[1], width)]
    return np.concatenate([_slice_figures(matches, part) for part in slices])


def _slice_figures(matches: ClassMatches, weights: Counts) -> Floats:
    """(R, 6) of one class, all resamples at once."""
    of_detection = weights[matches.image]  # (N, R)
    positives = matches.positives.T @ weights.astype(np.float64)  # (A, R)
    precision = np.full((len(AREAS), len(IOU_THRESHOLDS), weights.shape[1]), np.nan)
    for a in range(len(AREAS)):
        if not matches.positives[:, a].any():
            continue
        in_area = matches.in_area[:, a]
        counted_in_area = _RunningTotal(of_detection, in_area)
        for t in range(len(IOU_THRESHOLDS)):
            hit = matches.hit[:, t, a]
            hits = np.flatnonzero(hit)
            true_positives = np.cumsum(of_detection[hits], axis=0)
            # The few that count though their own area is outside of the range, and the other way round.
            more = _RunningTotal(of_detection, hit & ~in_area)
            fewer = _RunningTotal(of_detection, matches.ignored[:, t, a] & in_area)
            counted = counted_in_area.up_to(hits) + more.up_to(hits) - fewer.up_to(hits)
            precision[a, t] = average_precision(true_positives, counted, positives[a])
    overall, *by_size = precision.mean(axis=1)
    at_50, at_75 = (precision[0, np.isclose(IOU_THRESHOLDS, iou)][0] for iou in (0.5, 0.75))
    return np.stack([overall, at_50, at_75, *by_size], axis=1)


class _RunningTotal:
    """Running totals of the weights of some detections."""

    def __init__(self, weights: Counts, chosen: Bools) -> None:
        """Add up those rows of (N, R) ``weights`` that are ``chosen``, (N,)."""
        self.rows = np.flatnonzero(chosen)
        self.total = np.zeros((len(self.rows) + 1, weights.shape[1]), dtype=np.int32)
        np.cumsum(weights[self.rows], axis=0, out=self.total[1:])

    def up_to(self, rows: Integers) -> Counts:
        """(M, R) totals up to and with each of (M,) rows."""
        return self.total[np.searchsorted(self.rows, rows, side="right")]

"""Match the detections of an image to its ground truth.

Three rules exist, and every user of this module says which one it follows:

- :func:`match_greedily` is COCO's rule: a detection takes the best ground truth that is still free. TIDE and
  the pictures follow it too, without COCO's sizes.
- :func:`match_best_overlap` is Pascal VOC's rule: a detection takes the ground truth that it overlaps most,
  and is a duplicate if a better detection has it already.
- :func:`best_scored_detection` asks the other way round, which detection speaks for a ground truth.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask
from torch import Tensor

from defeat.evaluation.average_precision import Bools, Floats

Integers = NDArray[np.int64]

NO_MATCH = -1


def xywh(boxes: Tensor) -> Tensor:
    """Turn (N, 4) xyxy into the xywh of the annotation file that the boxes came from.

    In binary, x + width - x is not quite the width. Rounding to a millionth of a pixel, far below what
    float32 boxes resolve, takes the last bits off: an overlap of 3 / 5 is 0.6 here as in pycocotools.
    """
    corner = boxes[:, :2]
    return torch.cat([corner, (boxes[:, 2:] - corner).round(decimals=6)], dim=1)


def coco_overlaps(boxes: Tensor, true_boxes: Tensor, crowd: Tensor) -> Floats:
    """Compute the overlaps that the COCO metrics decide by, bit for bit.

    Args:
        boxes: (D, 4) xyxy detections.
        true_boxes: (G, 4) xyxy ground truth in the same pixels.
        crowd: (G,) bool; the overlap with a crowd is the intersection over the detection's own area.

    Returns:
        (D, G) float64 in [0, 1], intersection over union.
    """
    if not (len(boxes) and len(true_boxes)):
        return np.zeros((len(boxes), len(true_boxes)))
    detected, true = xywh(boxes.double()).numpy(), xywh(true_boxes.double()).numpy()
    overlap: Floats = mask.iou(detected, true, crowd.numpy())
    return overlap


class GreedyMatches(NamedTuple):
    """The ground truth that each of D detections takes, at T thresholds and for A sets of ignored boxes."""

    truth: Integers
    """(D, T, A) index of the ground truth, :data:`NO_MATCH` where the detection takes none."""
    ignored: Bools
    """(D, T, A) whether that ground truth is ignored, so that the detection counts neither way."""

    @property
    def hit(self) -> Bools:
        """(D, T, A) bool: the true positives."""
        hit: Bools = (self.truth != NO_MATCH) & ~self.ignored
        return hit


def match_greedily(
    overlap: Floats,
    thresholds: Floats,
    *,
    crowd: Bools,
    ignored: Bools,
    ties: Literal["first", "last"],
) -> GreedyMatches:
    """Match the detections of one image, best first, at all thresholds and for all sets of ignored boxes.

    A detection takes the free ground truth that it overlaps most, and an ignored one only where it reaches no
    other. What is taken is not free any more, except for a crowd.

    Args:
        overlap: (D, G), detections in the order of their scores; 0 where a pair must not match.
        thresholds: (T,) rising; a match needs an overlap of at least that much.
        crowd: (G,) ground truth that any number of detections may take.
        ignored: (A, G) ground truth that does not count: crowds, and for COCO what has another size.
        ties: which of equally overlapping boxes is taken; COCO takes the last, TIDE the first.
    """
    detections, boxes = overlap.shape
    truth = np.full((detections, len(thresholds), len(ignored)), NO_MATCH)
    if not boxes:
        return GreedyMatches(truth, np.zeros_like(truth, dtype=bool))
    if ties == "first":  # of the boxes in reverse order it is the last
        flipped = match_greedily(
            overlap[:, ::-1], thresholds, crowd=crowd[::-1], ignored=ignored[:, ::-1], ties="last"
        )
        return flipped._replace(
            truth=np.where(flipped.truth == NO_MATCH, NO_MATCH, boxes - 1 - flipped.truth)
        )
    free = np.ones((len(thresholds), len(ignored), boxes), dtype=bool)  # (T, A, G)
    for d in np.flatnonzero(overlap.max(axis=1) >= thresholds[0]):
        rank = np.empty(boxes, dtype=np.int64)
        rank[np.argsort(overlap[d], kind="stable")] = np.arange(boxes)
        reached = free & (overlap[d] >= thresholds[:, None, None])  # (T, A, G)
        best = np.where(reached, rank + boxes * ~ignored, -1).argmax(axis=2)  # (T, A)
        truth[d] = np.where(reached.any(axis=2), best, NO_MATCH)
        taken = (truth[d] != NO_MATCH) & ~crowd[best]  # (T, A)
        t, a = np.nonzero(taken)
        free[t, a, best[t, a]] = False
    on_ignored = ignored[np.arange(len(ignored)), truth] & (truth != NO_MATCH)  # (D, T, A)
    return GreedyMatches(truth, on_ignored)


def match_best_overlap(overlap: Floats, threshold: float) -> Integers:
    """Give each detection the ground truth that it overlaps most, whether others take it too or not.

    Args:
        overlap: (D, G); a negative number where a pair must not match.
        threshold: the least overlap of a match.

    Returns:
        (D,) index of the ground truth, :data:`NO_MATCH` where the best overlap is below the threshold.
    """
    if not overlap.size:
        return np.full(len(overlap), NO_MATCH)
    return np.where(overlap.max(axis=1) >= threshold, overlap.argmax(axis=1), NO_MATCH)


def best_scored_detection(overlap: Floats, scores: Floats, threshold: float) -> Integers:
    """Find for each ground truth the detection of the highest score that overlaps it, whatever its class.

    Args:
        overlap: (D, G).
        scores: (D,) at least 0.
        threshold: the least overlap.

    Returns:
        (G,) index of the detection, :data:`NO_MATCH` where none overlaps the ground truth enough.
    """
    if not overlap.size:
        return np.full(overlap.shape[1], NO_MATCH)
    score = np.where(overlap >= threshold, scores[:, None], -1.0)  # (D, G)
    return np.where(score.max(axis=0) >= 0, score.argmax(axis=0), NO_MATCH)

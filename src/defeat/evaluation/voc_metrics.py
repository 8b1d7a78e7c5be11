"""Pascal VOC average precision at IoU 0.5, as of VOC2007 (11 points) and as of VOC2010 (all points).

The rules are those of the VOC development kit (``VOCevaldet.m``, http://host.robots.ox.ac.uk/pascal/VOC/).
The kit's boxes are 1-based with an inclusive far corner, hence its ``+ 1`` in widths; boxes here are 0-based
with an exclusive far corner, so plain differences give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from defeat.evaluation.average_precision import VOC_RECALLS, Bools, Floats, average_precision_of_hits
from defeat.evaluation.evaluation import VOC_KEYS
from defeat.evaluation.image_result import ImageResult
from defeat.evaluation.matching import NO_MATCH, Integers, match_best_overlap

IOU_THRESHOLD = 0.5

_RECALLS: Mapping[str, Floats | None] = dict(zip(VOC_KEYS, (VOC_RECALLS, None), strict=True))


class VocMatches(NamedTuple):
    """The detections of all images and classes, best first, without those on ignored ground truth."""

    labels: Integers
    """(N,) 1..K."""
    hit: Bools
    """(N,) true positives; the others are false positives."""
    true_labels: Integers
    """(M,) 1..K of the ground truth to find, which is all that is not ignored."""


def voc_metrics(images: Sequence[ImageResult], classes: Sequence[str]) -> dict[str, float]:
    """Compute the mean AP over the classes that have ground truth, by both rules; nan if none has any.

    Args:
        images: any number of images, none twice.
        classes: K names; label i stands for ``classes[i - 1]``.
    """
    matches = match_voc(images)
    positives = np.bincount(matches.true_labels, minlength=len(classes) + 1)
    present = np.flatnonzero(positives).tolist()
    hits = {label: matches.hit[matches.labels == label] for label in present}

    def mean_ap(recalls: Floats | None) -> float:
        values = [average_precision_of_hits(hits[label], positives[label], recalls) for label in present]
        return float(np.mean(values)) if values else np.nan

    return {key: mean_ap(recalls) for key, recalls in _RECALLS.items()}


def match_voc(images: Sequence[ImageResult], iou_threshold: float = IOU_THRESHOLD) -> VocMatches:
    """Decide for each detection whether it is a true or a false positive.

    A detection takes the ground truth of its class that it overlaps most. It is a hit if the overlap is at
    least ``iou_threshold`` and no better-scored detection took the same box, and does not count at all if
    that box is ignored. Equal scores count in the order of ``images``, then in their order within the image.
    """
    if not images:
        return VocMatches(np.empty(0, dtype=np.int64), np.empty(0, dtype=bool), np.empty(0, dtype=np.int64))
    scores, labels, true_labels, ignore = (
        torch.cat([getattr(image, name) for image in images]).numpy()
        for name in ("scores", "labels", "true_labels", "ignore")
    )
    offsets = np.cumsum([0, *(len(image.true_boxes) for image in images)])  # of each image's first true box
    taken = np.concatenate(
        [_taken(image, iou_threshold, n) for image, n in zip(images, offsets, strict=False)]
    )
    best_first = np.argsort(-scores, kind="stable")
    on_ignored = np.append(ignore, False)[taken]  # NO_MATCH reads the appended False
    counted = best_first[~on_ignored[best_first]]
    return VocMatches(labels[counted], _first_of_each(taken[counted]), true_labels[~ignore])


def _taken(image: ImageResult, iou_threshold: float, offset: int) -> Integers:
    """(D,) position of the true box that each detection takes, counted over all images from ``offset``."""
    same_class = image.labels[:, None] == image.true_labels  # (D, G)
    overlap = torch.where(same_class, box_iou(image.boxes, image.true_boxes), -1.0).numpy()
    matched = match_best_overlap(overlap, iou_threshold)
    return np.where(matched == NO_MATCH, NO_MATCH, matched + offset)


def _first_of_each(taken: Integers) -> Bools:
    """Mark the first occurrence of each of (N,) integers, but for :data:`NO_MATCH`."""
    first = np.zeros(len(taken), dtype=bool)
    first[np.unique(taken, return_index=True)[1]] = True
    marked: Bools = first & (taken != NO_MATCH)
    return marked

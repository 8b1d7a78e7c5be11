"""Pascal VOC average precision at IoU 0.5, as of VOC2007 (11 points) and as of VOC2010 (all points).

The rules are those of the VOC development kit (``VOCevaldet.m``, http://host.robots.ox.ac.uk/pascal/VOC/).
The kit's boxes are 1-based with an inclusive far corner, whence its ``+ 1`` in widths; ours are 0-based with
an exclusive far corner, so plain differences give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from defeat.evaluation.image_result import ImageResult

Points = Literal["11", "all"]
IOU_THRESHOLD = 0.5


class ClassHits(NamedTuple):
    """The detections of one class over all images, best first, without those on ignored ground truth."""

    hit: Tensor
    """(N,) bool: true positive; the others are false positives."""
    positives: int
    """Number of ground truth boxes that are not ignored."""


def voc_ap(recall: Tensor, precision: Tensor, points: Points) -> float:
    """Return the area under a precision-recall curve by the rule of VOC.

    ``"11"`` averages, over the recalls 0, 0.1, ..., 1, the best precision at that recall or above. ``"all"``
    integrates the curve after making precision fall monotonically.

    Args:
        recall: (N,) float64, rising; element n is the recall of the best n + 1 detections.
        precision: (N,) float64 of the same detections.
        points: Which rule.

    Example:
        >>> recall, precision = torch.tensor([0.5, 0.5, 1.0]), torch.tensor([1.0, 0.5, 2 / 3])
        >>> round(voc_ap(recall, precision, "11"), 4), round(voc_ap(recall, precision, "all"), 4)
        (0.8485, 0.8333)
    """
    if recall.numel() == 0:
        return 0.0
    best_from_here = precision.flip(0).cummax(0).values.flip(0)
    if points == "all":
        steps = torch.diff(recall, prepend=recall.new_zeros(1))
        return float((steps * best_from_here).sum())
    # Tenths by division: 0.1 * 3 is above 0.3, so a recall of 3 / 10 would miss it.
    levels = torch.arange(11, dtype=recall.dtype) / 10
    reached_at = torch.searchsorted(recall.contiguous(), levels)
    return float(torch.cat([best_from_here, precision.new_zeros(1)])[reached_at].mean())


def match_class(images: Sequence[ImageResult], label: int, iou_threshold: float = IOU_THRESHOLD) -> ClassHits:
    """Decide for each detection of a class whether it is a true or a false positive.

    A detection takes the ground truth that it overlaps most. It is a hit if the overlap is at least
    ``iou_threshold`` and no better-scored detection took the same box, and does not count at all if that box
    is ignored. Equal scores count in the order of ``images``, then in their order within the image.
    """
    scores, taken, positives = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.int64)], 0
    boxes_before = 0
    for image in images:
        of_class, true_of_class = image.labels == label, image.true_labels == label
        ignore = image.ignore[true_of_class]
        box = _overlapped(image.boxes[of_class], image.true_boxes[true_of_class], iou_threshold)
        counts = ~torch.cat([ignore, ignore.new_zeros(1)])[box]  # -1, no box, reads the appended False
        scores.append(image.scores[of_class][counts])
        taken.append(torch.where(box < 0, box, box + boxes_before)[counts])
        positives += int((~ignore).sum())
        boxes_before += ignore.numel()
    order = torch.cat(scores).argsort(descending=True, stable=True)
    return ClassHits(_first_of_each(torch.cat(taken)[order]), positives)


def average_precision(hits: ClassHits, points: Points) -> float:
    """Return the AP of one class, nan if it has no ground truth to find."""
    if hits.positives == 0:
        return math.nan
    found = hits.hit.double().cumsum(0)
    rank = torch.arange(1, hits.hit.numel() + 1, dtype=torch.float64)
    return voc_ap(found / hits.positives, found / rank, points)


def voc_figures(images: Sequence[ImageResult], classes: Sequence[str]) -> dict[str, float]:
    """Compute the mean AP over the classes that have ground truth, by both rules; nan if none has any.

    Args:
        images: Any number of images, none twice.
        classes: K names; label i stands for ``classes[i - 1]``.
    """
    hits = [match_class(images, label) for label in range(1, len(classes) + 1)]
    return {f"AP50_{points}point": _mean_ap(hits, points) for points in ("11", "all")}


def _overlapped(boxes: Tensor, true_boxes: Tensor, iou_threshold: float) -> Tensor:
    """Return, for each of (N, 4) boxes, the position of the true box it overlaps most, or -1 if too little."""
    if true_boxes.numel() == 0:
        return torch.full((len(boxes),), -1, dtype=torch.int64)
    overlap, position = box_iou(boxes, true_boxes).max(dim=1)
    return torch.where(overlap >= iou_threshold, position, -1)


def _first_of_each(taken: Tensor) -> Tensor:
    """Mark the first occurrence of each value of (N,) integers; -1 stands for nothing and is never marked."""
    seen: set[int] = {-1}
    first = []
    for box in taken.tolist():
        first.append(box not in seen)
        seen.add(box)
    return torch.tensor(first, dtype=torch.bool)


def _mean_ap(hits: Sequence[ClassHits], points: Points) -> float:
    values = torch.tensor([average_precision(of_class, points) for of_class in hits], dtype=torch.float64)
    return float(values.nanmean())

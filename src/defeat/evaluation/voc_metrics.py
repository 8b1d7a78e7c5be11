"""Pascal VOC average precision at IoU 0.5, as of VOC2007 (11 points) and as of VOC2010 (all points).

The rules are those of the VOC development kit (``VOCevaldet.m``, http://host.robots.ox.ac.uk/pascal/VOC/).
The kit's boxes are 1-based with an inclusive far corner, whence its ``+ 1`` in widths; ours are 0-based with
an exclusive far corner, so plain differences give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from defeat.evaluation.image_result import ImageResult

Points = Literal["11", "all"]
POINTS: tuple[Points, ...] = ("11", "all")
IOU_THRESHOLD = 0.5


class Matches(NamedTuple):
    """The detections of all images and classes, best first, without those on ignored ground truth."""

    labels: Tensor
    """(N,) int64, 1..K."""
    hit: Tensor
    """(N,) bool: true positive; the others are false positives."""
    true_labels: Tensor
    """(M,) int64, 1..K: the ground truth to find, which is all that is not ignored."""


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


def match(images: Sequence[ImageResult], iou_threshold: float = IOU_THRESHOLD) -> Matches:
    """Decide for each detection whether it is a true or a false positive.

    A detection takes the ground truth of its class that it overlaps most. It is a hit if the overlap is at
    least ``iou_threshold`` and no better-scored detection took the same box, and does not count at all if
    that box is ignored. Equal scores count in the order of ``images``, then in their order within the image.
    """
    if not images:
        nothing = torch.empty(0, dtype=torch.int64)
        return Matches(nothing, nothing.bool(), nothing)
    first_box = [0, *accumulate(len(image.true_boxes) for image in images)]
    taken = torch.cat([_taken(image, iou_threshold, n) for image, n in zip(images, first_box, strict=False)])
    scores, labels = (torch.cat([getattr(image, name) for image in images]) for name in ("scores", "labels"))
    true_labels, ignore = (
        torch.cat([getattr(image, n) for image in images]) for n in ("true_labels", "ignore")
    )

    best_first = scores.argsort(descending=True, stable=True)
    on_ignored = torch.cat([ignore, ignore.new_zeros(1)])[taken]  # -1, no box, reads the appended False
    counted = best_first[~on_ignored[best_first]]
    return Matches(labels[counted], _first_of_each(taken[counted]), true_labels[~ignore])


def average_precision(matches: Matches, label: int, points: Points) -> float:
    """Return the AP of one class, nan if it has no ground truth to find."""
    positives = int((matches.true_labels == label).sum())
    if positives == 0:
        return math.nan
    hit = matches.hit[matches.labels == label]
    found = hit.double().cumsum(0)
    return voc_ap(found / positives, found / torch.arange(1, len(hit) + 1, dtype=torch.float64), points)


def voc_metrics(images: Sequence[ImageResult], classes: Sequence[str]) -> dict[str, float]:
    """Compute the mean AP over the classes that have ground truth, by both rules; nan if none has any.

    Args:
        images: Any number of images, none twice.
        classes: K names; label i stands for ``classes[i - 1]``.
    """
    matches = match(images)
    return {f"AP50_{points}point": _mean_ap(matches, len(classes), points) for points in POINTS}


def _taken(image: ImageResult, iou_threshold: float, first_box: int) -> Tensor:
    """Number, from ``first_box`` on, the true box that each of N detections takes; -1 where it takes none."""
    if image.true_boxes.numel() == 0:
        return torch.full_like(image.labels, -1)
    same_class = image.labels[:, None] == image.true_labels
    overlap, box = torch.where(same_class, box_iou(image.boxes, image.true_boxes), -1.0).max(dim=1)
    return torch.where(overlap >= iou_threshold, box + first_box, -1)


def _first_of_each(taken: Tensor) -> Tensor:
    """Mark the first occurrence of each of (N,) integers; -1 stands for nothing and is never marked."""
    _, places = np.unique(taken.numpy(), return_index=True)
    first = torch.zeros(len(taken), dtype=torch.bool)
    first[torch.from_numpy(places)] = True
    return first & (taken >= 0)


def _mean_ap(matches: Matches, classes: int, points: Points) -> float:
    values = [average_precision(matches, label, points) for label in range(1, classes + 1)]
    return float(torch.tensor(values, dtype=torch.float64).nanmean())

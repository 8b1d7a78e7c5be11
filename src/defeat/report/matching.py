"""Which detection finds which ground truth, by the rules of COCO, for all thresholds and sizes at once.

The rules are those of pycocotools' ``cocoeval.py`` (https://cocodataset.org/#detection-eval), which
:func:`defeat.evaluation.coco_metrics.coco_metrics` applies too. Matches depend on one image alone, so the
figures of any resample of the images follow from them without matching again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from defeat.evaluation.image_result import ImageResult
from defeat.report.overlap import Bools, Floats, as_numpy, overlaps

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
_BOUNDS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # square pixels, both included
_MAX_DETECTIONS = 100  # of an image and class


class ClassMatches(NamedTuple):
    """The detections of one class on I images, best first; T thresholds, A ranges of areas."""

    image: NDArray[np.int64]
    """(N,) position of the image."""
    hit: Bools
    """(N, T, A): found ground truth of that range."""
    excused: Bools
    """(N, T, A): found ground truth that does not count, and does not count itself."""
    in_area: Bools
    """(N, A): its own area lies in the range. Detections that found nothing count where it does."""
    positives: NDArray[np.int64]
    """(I, A): the ground truth to find."""


def match_classes(images: Sequence[ImageResult], classes: int) -> list[ClassMatches]:
    """Match the detections of all images, class by class.

    At most 100 detections count per image and class. Detections of equal score count in the order of
    ``images``, then in their order within the image.

    Args:
        images: any number of images.
        classes: how many there are; the result is of labels 1..K in order.
    """
    parts: list[list[_Part]] = [[] for _ in range(classes)]
    positives = np.zeros((classes, len(images), len(AREAS)), dtype=np.int64)
    for place, image in enumerate(images):
        found, true = as_numpy(image.boxes), as_numpy(image.true_boxes)
        labels, true_labels = image.labels.numpy(), image.true_labels.numpy()
        scores, crowd, area = image.scores.numpy(), image.ignore.numpy(), image.area.numpy()
        best_first = np.argsort(-scores, kind="stable")
        for label in np.union1d(labels, true_labels).tolist():
            mine = best_first[labels[best_first] == label][:_MAX_DETECTIONS]
            theirs = true_labels == label
            aside = crowd[theirs] | ~_within(area[theirs])
            positives[label - 1, place] = (~aside).sum(axis=1)
            if len(mine):
                overlap = overlaps(found[mine], true[theirs], crowd[theirs])
                hit, excused = match(overlap, crowd[theirs], aside)
                in_area = _within(found[mine, 2] * found[mine, 3]).T
                parts[label - 1].append(_Part(place, scores[mine], hit, excused, in_area))
    return [_join(mine, theirs) for mine, theirs in zip(parts, positives, strict=True)]


def match(overlap: Floats, crowd: Bools, aside: Bools) -> tuple[Bools, Bools]:
    """Match the detections of one image and class at all thresholds and for all ranges of areas.

    A detection takes the free ground truth that it overlaps most, of equals the last, and what is set aside
    only where it reaches nothing else. A crowd stays free.

    Args:
        overlap: (D, G), detections in the order of their scores.
        crowd: (G,).
        aside: (A, G), ground truth that does not count for a range: crowds, and what is of another size.

    Returns:
        (D, T, A) which detections found ground truth that counts, and which found such that does not.
    """
    detections, boxes = overlap.shape
    hit = np.zeros((detections, len(IOU_THRESHOLDS), len(aside)), dtype=bool)
    excused = np.zeros_like(hit)
    if not boxes:
        return hit, excused
    free = np.ones((len(IOU_THRESHOLDS), len(aside), boxes), dtype=bool)
    for d in np.flatnonzero(overlap.max(axis=1) >= IOU_THRESHOLDS[0]):
        order = np.empty(boxes, dtype=np.int64)
        order[np.argsort(overlap[d], kind="stable")] = np.arange(boxes)
        reached = free & (overlap[d] >= IOU_THRESHOLDS[:, None, None])
        chosen = np.where(reached, order + boxes * ~aside, -1).argmax(axis=2)
        any_reached = reached.any(axis=2)
        counts = ~np.take_along_axis(aside[None], chosen[:, :, None], axis=2)[:, :, 0]
        hit[d], excused[d] = any_reached & counts, any_reached & ~counts
        stays = ~any_reached | crowd[chosen]
        np.put_along_axis(free, chosen[:, :, None], (_at(free, chosen) & stays)[:, :, None], axis=2)
    return hit, excused


class _Part(NamedTuple):
    """The detections of one image and class."""

    place: int
    scores: Floats
    hit: Bools
    excused: Bools
    in_area: Bools


def _at(values: Bools, chosen: NDArray[np.int64]) -> Bools:
    return np.take_along_axis(values, chosen[:, :, None], axis=2)[:, :, 0]


def _within(area: Floats) -> Bools:
    """(A, N) which areas lie in which range."""
    return (area >= _BOUNDS[:, :1]) & (area <= _BOUNDS[:, 1:])


def _join(parts: Sequence[_Part], positives: NDArray[np.int64]) -> ClassMatches:
    lanes = (len(IOU_THRESHOLDS), len(AREAS))
    scores = np.concatenate([np.empty(0), *(part.scores for part in parts)])
    image = np.repeat(
        np.array([part.place for part in parts], dtype=np.int64), [len(p.scores) for p in parts]
    )
    best_first = np.argsort(-scores, kind="stable")
    return ClassMatches(
        image=image[best_first],
        hit=np.concatenate([np.empty((0, *lanes), dtype=bool), *(p.hit for p in parts)])[best_first],
        excused=np.concatenate([np.empty((0, *lanes), dtype=bool), *(p.excused for p in parts)])[best_first],
        in_area=np.concatenate([np.empty((0, lanes[1]), dtype=bool), *(p.in_area for p in parts)])[
            best_first
        ],
        positives=positives,
    )

"""The matches of all images by the rules of COCO, class by class, for all thresholds and sizes at once.

The rules are those of pycocotools' ``cocoeval.py`` (https://cocodataset.org/#detection-eval), which
:func:`defeat.evaluation.coco_metrics.coco_metrics` applies too. Matches depend on one image alone, so the
metrics of any resample of the images follow from them without matching again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from defeat.evaluation.average_precision import Bools, Floats
from defeat.evaluation.coco_metrics import DEFAULT_MAX_DETS
from defeat.evaluation.image_result import ImageResult
from defeat.evaluation.matching import Integers, coco_overlaps, match_greedily, xywh

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
_AREA_BOUNDS = np.array(
    [[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]]
)  # square pixels, both included


class ClassMatches(NamedTuple):
    """The detections of one class on I images, best first; T thresholds, A ranges of areas."""

    image: Integers
    """(N,) position of the image."""
    hit: Bools
    """(N, T, A): matched ground truth of that range."""
    ignored: Bools
    """(N, T, A): matched ground truth that does not count, and does not count itself."""
    in_area: Bools
    """(N, A): its own area lies in the range. Detections without a match count where it does."""
    positives: Integers
    """(I, A): number of ground truth boxes to find."""


def match_classes(
    images: Sequence[ImageResult], classes: int, max_dets: int = DEFAULT_MAX_DETS
) -> list[ClassMatches]:
    """Match the detections of all images, class by class.

    At most ``max_dets`` detections count per image and class. Detections of equal score count in the order of
    ``images``, then in their order within the image.

    Args:
        images: any number of images.
        classes: number of classes; the result is for the labels 1..K in order.
        max_dets: as the metrics were computed with.
    """
    per_class: list[list[_ImageMatches]] = [[] for _ in range(classes)]
    positives = np.zeros((classes, len(images), len(AREAS)), dtype=np.int64)
    for position, image in enumerate(map(_best_first, images)):
        overlap = coco_overlaps(image.boxes, image.true_boxes, image.ignore)  # (D, G)
        in_area = _in_areas(xywh(image.boxes)[:, 2:].prod(dim=1).numpy())  # (A, D)
        for label in np.union1d(image.labels, image.true_labels).tolist():
            matches, positives[label - 1, position] = _match_image(
                position, image, overlap, in_area, label, max_dets
            )
            per_class[label - 1].append(matches)
    return [_join(matches, to_find) for matches, to_find in zip(per_class, positives, strict=True)]


class _ImageMatches(NamedTuple):
    """The detections of one image and class; the fields are those of :class:`ClassMatches`."""

    image: Integers
    scores: Floats
    hit: Bools
    ignored: Bools
    in_area: Bools


def _best_first(image: ImageResult) -> ImageResult:
    order = image.scores.argsort(descending=True, stable=True)
    return image._replace(boxes=image.boxes[order], scores=image.scores[order], labels=image.labels[order])


def _match_image(
    position: int, image: ImageResult, overlap: Floats, in_area: Bools, label: int, max_dets: int
) -> tuple[_ImageMatches, Integers]:
    """Match one class in one image, best first; also count the (A,) boxes that are to be found."""
    detected = np.flatnonzero(image.labels.numpy() == label)[:max_dets]
    true = np.flatnonzero(image.true_labels.numpy() == label)
    crowd = image.ignore.numpy()[true]
    ignored = crowd | ~_in_areas(image.area.numpy()[true])  # (A, G)
    matches = match_greedily(
        overlap[np.ix_(detected, true)], IOU_THRESHOLDS, crowd=crowd, ignored=ignored, ties="last"
    )
    image_matches = _ImageMatches(
        image=np.full(len(detected), position),
        scores=image.scores.numpy()[detected],
        hit=matches.hit,
        ignored=matches.ignored,
        in_area=in_area[:, detected].T,
    )
    return image_matches, (~ignored).sum(axis=1)


def _in_areas(area: Floats) -> Bools:
    """(A, N) whether each of (N,) areas lies in each range."""
    return (area >= _AREA_BOUNDS[:, :1]) & (area <= _AREA_BOUNDS[:, 1:])


def _join(matches: Sequence[_ImageMatches], positives: Integers) -> ClassMatches:
    """Put the matches of one class in all images together, best first."""
    shape = (0, len(IOU_THRESHOLDS), len(AREAS))
    none = _ImageMatches(
        image=np.empty(0, dtype=np.int64),
        scores=np.empty(0),
        hit=np.empty(shape, dtype=bool),
        ignored=np.empty(shape, dtype=bool),
        in_area=np.empty((0, len(AREAS)), dtype=bool),
    )
    columns = [np.concatenate(column) for column in zip(none, *matches, strict=True)]
    joined = _ImageMatches(*columns)
    best_first = np.argsort(-joined.scores, kind="stable")
    return ClassMatches(
        image=joined.image[best_first],
        hit=joined.hit[best_first],
        ignored=joined.ignored[best_first],
        in_area=joined.in_area[best_first],
        positives=positives,
    )

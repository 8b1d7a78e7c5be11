"""Which classes a detector takes for which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from defeat.evaluation.image_result import ImageResult
from defeat.evaluation.matching import NO_MATCH, Integers, coco_overlaps, match_greedily

MISSED, BACKGROUND = "(missed)", "(background)"
"""What objects without a detection are taken for, and what detections without an object are of."""


SCORE, IOU = 0.5, 0.5
"""The least score of a detection and its least overlap with an object, where no others are asked for."""


class Confusion(NamedTuple):
    """Objects of one class that were taken for another one, or for nothing."""

    truth: str
    predicted: str
    objects: int
    share: float
    """Of all objects of ``truth``."""


def confusion_matrix(
    images: Sequence[ImageResult], classes: int, *, score: float = SCORE, iou: float = IOU
) -> Integers:
    """Count objects by their class and by the class of the detection that each one has.

    Detections of a score of at least ``score`` first take objects of their own class, by COCO's rule: the
    diagonal has the true positives of that rule. Those that took none, best first, take what is left of the
    other classes. Detections inside a region to ignore of their class count neither way, nor does the region.

    Args:
        images: any number of images, none twice.
        classes: K, their number.
        score: the least score of a detection that counts.
        iou: the least overlap of a detection and its object.

    Returns:
        (K + 1, K + 1): a row for each class of the ground truth, a column for each predicted one. The last
        column counts objects without a detection, the last row detections without an object.
    """
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for image in images:
        truth, predicted = _pairs(image, classes, score, iou)
        np.add.at(counts, (truth, predicted), 1)
    return counts


def _pairs(image: ImageResult, nothing: int, score: float, iou: float) -> tuple[Integers, Integers]:
    """Return the class, from 0 on, of the object and of the detection of each pair; ``nothing`` for none."""
    order = image.scores.argsort(descending=True, stable=True)
    order = order[image.scores[order] >= score]
    labels, true_labels = image.labels[order].numpy() - 1, image.true_labels.numpy() - 1  # (D,), (G,)
    ignore, thresholds = image.ignore.numpy(), np.array([iou])
    overlap = coco_overlaps(image.boxes[order], image.true_boxes, image.ignore)  # (D, G)
    same_class = overlap * (labels[:, None] == true_labels)
    matches = match_greedily(same_class, thresholds, crowd=ignore, ignored=ignore[None], ties="first")
    hit, matched = matches.hit[:, 0, 0], matches.truth[:, 0, 0]
    detections = np.flatnonzero(matched == NO_MATCH)
    free = np.setdiff1d(np.flatnonzero(~ignore), matched[hit])
    no_crowd = np.zeros(len(free), dtype=bool)
    other_class = match_greedily(
        overlap[np.ix_(detections, free)], thresholds, crowd=no_crowd, ignored=no_crowd[None], ties="first"
    ).truth[:, 0, 0]  # (detections,)
    confused = other_class != NO_MATCH
    missed = np.delete(free, other_class[confused])
    background = labels[detections[~confused]]
    truth = [
        labels[hit],
        true_labels[free[other_class[confused]]],
        true_labels[missed],
        np.full_like(background, nothing),
    ]
    predicted = [labels[hit], labels[detections[confused]], np.full_like(missed, nothing), background]
    return np.concatenate(truth), np.concatenate(predicted)


def rule(score: float = SCORE, iou: float = IOU) -> str:
    """Say in words by which detections and objects a matrix was counted."""
    return f"detections of a score from {score:g}, on an object with an IoU from {iou:g}"


def confusions(matrix: Integers, classes: Sequence[str]) -> list[Confusion]:
    """List the pairs of unlike classes that occur, the most frequent first.

    Args:
        matrix: see :func:`confusion_matrix`.
        classes: K names.
    """
    in_all = matrix.sum(axis=1)
    off = matrix[:-1, :-1] * ~np.eye(len(classes), dtype=bool)
    rows, columns = np.nonzero(off)
    order = np.argsort(-off[rows, columns], kind="stable")
    return [
        Confusion(classes[r], classes[c], int(off[r, c]), float(off[r, c] / in_all[r]))
        for r, c in zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    ]


def confusion_rows(matrix: Integers, classes: Sequence[str]) -> Iterator[list[str | int]]:
    """Yield the rows of a table: the name of a row and its K + 1 counts."""
    for name, row in zip([*classes, BACKGROUND], matrix.tolist(), strict=True):
        yield [name, *row]

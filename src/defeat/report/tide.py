"""The kinds of errors a detector makes, and the AP that each of them costs (TIDE).

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, arXiv 2008.08115,
section 2. Where the paper leaves room, this does what the authors' package ``tidecv`` 1.0.1 does, so that
figures can be set beside published ones:

- A false positive of several kinds is the first of Loc, Cls, Dupe, Bkg, Both.
- Of several false positives that a correction would turn into the same ground truth's hit, whether by class
  or by place, the one of best score becomes it and the others go.
- Detections that overlap a crowd of their class by more than half of themselves count neither as hits nor as
  false positives; they are sorted into the kinds like the others all the same.
- The 100 best detections of an image count, over all classes.
- A correction that lowers the AP counts as 0.

Unlike there, classes without ground truth are left out, as in the COCO figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from defeat.evaluation.average_precision import Bools, Floats, average_precision_of_hits
from defeat.evaluation.image_result import ImageResult
from defeat.evaluation.matching import Integers, coco_overlaps, match_greedily

FOREGROUND, BACKGROUND = 0.5, 0.1
"""From the first IoU on a detection finds its ground truth; up to the second it is on background."""

KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
"""Wrong class; right class, but badly placed; both; a second time; on background; not found at all."""
SPECIAL = ("FalsePos", "FalseNeg")
"""All false positives, and all ground truth that is not found."""

_CLS, _LOC, _BOTH, _DUPE, _BKG, _MISS = range(6)
_HIT = -1
_MAX_DETECTIONS = 100


class Errors(NamedTuple):
    """The errors of one detector."""

    ap50: float
    """AP50 without correction, in [0, 1]."""
    gains: dict[str, float]
    """Rise of AP50 when one of :data:`KINDS` and :data:`SPECIAL` alone is corrected."""
    counts: dict[str, int]
    """Number of errors of each kind."""


class ClassifiedErrors(NamedTuple):
    """N detections, and the ground truth, with the kinds of errors they are."""

    scores: Floats
    """(N,)."""
    labels: Integers
    """(N,) 1..K."""
    kind: Integers
    """(N,) index into :data:`KINDS`, -1 for a hit."""
    on_crowd: Bools
    """(N,) no hit, and on a crowd of its class."""
    corrected: Integers
    """(N,) label of the hit that it becomes when its kind is corrected; 0 where it is removed."""
    positives: Integers
    """(K + 1,) number of ground truth boxes to find, by label."""
    missed: Integers
    """(K + 1,) number of those that are not found, and that no Cls or Loc error could find."""
    unfound: Integers
    """(K + 1,) number of those that are not found."""


def tide(images: Sequence[ImageResult], classes: int) -> Errors:
    """Classify the errors of a detector and measure the AP50 that each kind of them costs.

    Args:
        images: any number of images.
        classes: number of classes.
    """
    errors = _join([classify_errors(image, classes) for image in images], classes)
    hit = errors.kind == _HIT
    counted = hit | ~errors.on_crowd
    best_first = np.argsort(-errors.scores, kind="stable")
    present = np.flatnonzero(errors.positives)

    def ap50(labels: Integers, hit: Bools, kept: Bools, positives: Integers) -> float:
        order = best_first[kept[best_first]]
        return _mean_ap(labels[order], hit[order], positives, present)

    before = ap50(errors.labels, hit, counted, errors.positives)
    after: dict[str, float] = {}
    for kind, name in enumerate(KINDS[:_MISS]):
        becomes = np.where(errors.kind == kind, errors.corrected, 0)
        labels = np.where(becomes > 0, becomes, errors.labels)
        kept = np.where(errors.kind == kind, becomes > 0, counted)
        after[name] = ap50(labels, hit | (becomes > 0), kept, errors.positives)
    after["Miss"] = ap50(errors.labels, hit, counted, errors.positives - errors.missed)
    after["FalsePos"] = ap50(errors.labels, hit, hit, errors.positives)
    after["FalseNeg"] = ap50(errors.labels, hit, counted, errors.positives - errors.unfound)

    counts = {name: int((errors.kind == kind).sum()) for kind, name in enumerate(KINDS)}
    counts["Miss"] = int(errors.missed.sum())
    counts["FalsePos"], counts["FalseNeg"] = int((counted & ~hit).sum()), int(errors.unfound.sum())
    gains = {name: value if math.isnan(value) else max(value - before, 0.0) for name, value in after.items()}
    return Errors(before, gains, counts)


def classify_errors(image: ImageResult, classes: int) -> ClassifiedErrors:
    """Match the detections of one image, and classify those that are no hits and the ground truth."""
    order = np.argsort(-image.scores.numpy(), kind="stable")[:_MAX_DETECTIONS]
    labels, crowd = image.labels.numpy()[order], image.ignore.numpy()
    overlap = coco_overlaps(image.boxes[order], image.true_boxes, image.ignore)  # (D, all)
    same_class = labels[:, None] == image.true_labels.numpy()
    on_crowd = ((overlap > FOREGROUND) & same_class)[:, crowd].any(axis=1)

    true_labels = image.true_labels.numpy()[~crowd]  # (G,)
    overlap, same_class = overlap[:, ~crowd], same_class[:, ~crowd]  # (D, G)
    none = np.zeros(len(true_labels), dtype=bool)
    matches = match_greedily(
        np.where(same_class, overlap, 0.0),
        np.array([FOREGROUND]),
        crowd=none,
        ignored=none[None],
        ties="first",
    )
    hit = matches.hit[:, 0, 0]
    found = none.copy()
    found[matches.truth[hit]] = True
    kind = np.where(hit, _HIT, _error_kinds(overlap, same_class))
    corrected, claimed = _correct(kind, overlap, same_class, true_labels, found)

    def per_label(chosen: Bools) -> Integers:
        return np.bincount(true_labels[chosen], minlength=classes + 1)

    return ClassifiedErrors(
        scores=image.scores.numpy()[order],
        labels=labels,
        kind=kind,
        on_crowd=on_crowd & ~hit,
        corrected=corrected,
        positives=per_label(~none),
        missed=per_label(~found & ~claimed),
        unfound=per_label(~found),
    )


def _error_kinds(overlap: Floats, same_class: Bools) -> Integers:
    """(D,) kind of each detection, if it is a false positive (section 2.2 of the paper)."""

    def best(allowed: Bools) -> Floats:
        greatest: Floats = np.where(allowed, overlap, 0.0).max(axis=1, initial=0.0)
        return greatest

    same, other = best(same_class), best(~same_class)  # (D,)
    conditions = [
        (same >= BACKGROUND) & (same <= FOREGROUND),
        other >= FOREGROUND,
        same >= FOREGROUND,  # a better detection has found that box, or this one were a hit
        np.maximum(same, other) <= BACKGROUND,
    ]
    return np.select(conditions, [_LOC, _CLS, _DUPE, _BKG], _BOTH)


def _correct(
    kind: Integers, overlap: Floats, same_class: Bools, true_labels: Integers, found: Bools
) -> tuple[Integers, Bools]:
    """Decide which Cls and Loc errors become hits when corrected, and which ground truth they claim.

    Returns:
        (D,) label of that hit or 0, and (G,) bool.
    """
    corrected = np.zeros(len(kind), dtype=np.int64)
    claimed = np.zeros(len(found), dtype=bool)
    for d in np.flatnonzero((kind == _CLS) | (kind == _LOC)):
        g = np.where(same_class[d] == (kind[d] == _LOC), overlap[d], 0.0).argmax()
        if not found[g] and not claimed[g]:
            corrected[d] = true_labels[g]
            claimed[g] = True
    return corrected, claimed


def _mean_ap(labels: Integers, hit: Bools, positives: Integers, present: Integers) -> float:
    """Average the AP at IoU 0.5 over the classes that are ``present``, nan if there are none.

    A class that has nothing left to find and no detections either is left out.

    Args:
        labels: (N,) labels of the detections, best first.
        hit: (N,) whether they are true positives; the others are false ones.
        positives: (K + 1,) number of ground truth boxes to find, by label.
        present: (P,) labels that count.
    """
    values = []
    for label in present.tolist():
        if positives[label]:
            values.append(average_precision_of_hits(hit[labels == label], positives[label]))
        elif (labels == label).any():
            values.append(0.0)
    return math.fsum(values) / len(values) if values else math.nan


def _join(errors: Sequence[ClassifiedErrors], classes: int) -> ClassifiedErrors:
    """Put the images together: detections one after the other, ground truth summed up."""
    none, no_truth = np.zeros(0, dtype=np.int64), np.zeros(classes + 1, dtype=np.int64)
    nothing = ClassifiedErrors(np.zeros(0), none, none, np.zeros(0, dtype=bool), none, *[no_truth] * 3)
    columns = list(zip(nothing, *errors, strict=True))
    return ClassifiedErrors(
        *(np.concatenate(column) for column in columns[:5]),
        *(np.sum(column, axis=0) for column in columns[5:]),
    )

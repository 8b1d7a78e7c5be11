"""What kinds of errors a detector makes, and what each of them costs (TIDE).

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
from numpy.typing import NDArray

from defeat.evaluation.image_result import ImageResult
from defeat.report.overlap import Bools, Floats, as_numpy, overlaps
from defeat.report.precision import average_precision

FOREGROUND, BACKGROUND = 0.5, 0.1
"""From this IoU on a detection finds its ground truth; up to that one it is on background."""

KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
"""Wrong class; right class, but badly placed; both; a second time; on background; not found at all."""
SPECIAL = ("FalsePos", "FalseNeg")
"""All false positives, and all ground truth that is not found."""

_CLS, _LOC, _BOTH, _DUPE, _BKG, _MISS = range(6)
_HIT = -1
_MAX_DETECTIONS = 100

Labels = NDArray[np.int64]


class Errors(NamedTuple):
    """The errors of one detector."""

    ap50: float
    """Without correction, in [0, 1]."""
    gains: dict[str, float]
    """Of each of :data:`KINDS` and :data:`SPECIAL`: how much AP50 rises when that kind alone is corrected."""
    counts: dict[str, int]
    """How many there are of each."""


class Sorted(NamedTuple):
    """Detections, N of them, and ground truth, sorted into kinds."""

    scores: Floats
    labels: Labels
    """(N,) 1..K."""
    kind: Labels
    """(N,) place in :data:`KINDS`, -1 for a hit."""
    ignored: Bools
    """(N,) on a crowd."""
    corrected: Labels
    """(N,) label of the hit that it becomes when its kind is corrected; 0 where it goes."""
    positives: Labels
    """(K + 1,) ground truth to find, of each label."""
    missed: Labels
    """(K + 1,) ground truth that is not found, and that no Cls or Loc error could find."""
    unfound: Labels
    """(K + 1,) all ground truth that is not found."""


def tide(images: Sequence[ImageResult], classes: int) -> Errors:
    """Sort the errors of a detector into kinds and measure what each of them costs.

    Args:
        images: any number of images.
        classes: how many there are.
    """
    found = _join([sort_errors(image, classes) for image in images], classes)
    hit = found.kind == _HIT
    counted = hit | ~found.ignored
    best_first = np.argsort(-found.scores, kind="stable")
    present = found.positives > 0

    def ap50(labels: Labels, hit: Bools, kept: Bools, positives: Labels) -> float:
        order = best_first[kept[best_first]]
        return _mean_ap(labels[order], hit[order], positives, present)

    before = ap50(found.labels, hit, counted, found.positives)
    after: dict[str, float] = {}
    for kind, name in enumerate(KINDS[:_MISS]):
        becomes = np.where(found.kind == kind, found.corrected, 0)
        labels = np.where(becomes > 0, becomes, found.labels)
        kept = np.where(found.kind == kind, becomes > 0, counted)
        after[name] = ap50(labels, hit | (becomes > 0), kept, found.positives)
    after["Miss"] = ap50(found.labels, hit, counted, found.positives - found.missed)
    after["FalsePos"] = ap50(found.labels, hit, hit, found.positives)
    after["FalseNeg"] = ap50(found.labels, hit, counted, found.positives - found.unfound)

    count = {name: int((found.kind == kind).sum()) for kind, name in enumerate(KINDS)}
    count["Miss"] = int(found.missed.sum())
    count["FalsePos"], count["FalseNeg"] = int((counted & ~hit).sum()), int(found.unfound.sum())
    gain = {name: value if math.isnan(value) else max(value - before, 0.0) for name, value in after.items()}
    return Errors(before, gain, count)


def sort_errors(image: ImageResult, classes: int) -> Sorted:
    """Match the detections of one image and sort those that are no hits, and the ground truth, into kinds."""
    order = np.argsort(-image.scores.numpy(), kind="stable")[:_MAX_DETECTIONS]
    boxes, labels = as_numpy(image.boxes)[order], image.labels.numpy()[order]
    true_boxes, true_labels = as_numpy(image.true_boxes), image.true_labels.numpy()
    crowd = image.ignore.numpy()
    on_crowd = overlaps(boxes, true_boxes[crowd], crowd[crowd]) > FOREGROUND
    on_crowd = (on_crowd & (labels[:, None] == true_labels[crowd])).any(axis=1)

    true_labels = true_labels[~crowd]
    overlap = overlaps(boxes, true_boxes[~crowd], crowd[~crowd])
    same_class = labels[:, None] == true_labels
    hit, used = _match(np.where(same_class, overlap, 0.0))
    kind = np.where(hit, _HIT, _kind(overlap, same_class))
    corrected, claimed = _correct(kind, overlap, same_class, true_labels, used)

    def per_label(of: Bools) -> Labels:
        return np.bincount(true_labels[of], minlength=classes + 1)

    return Sorted(
        scores=image.scores.numpy()[order],
        labels=labels,
        kind=kind,
        ignored=on_crowd & ~hit,
        corrected=corrected,
        positives=per_label(np.ones_like(used)),
        missed=per_label(~used & ~claimed),
        unfound=per_label(~used),
    )


def _match(overlap: Floats) -> tuple[Bools, Bools]:
    """Give each detection, best first, the free ground truth of its class that it overlaps most.

    Args:
        overlap: (D, G), 0 where the classes differ.

    Returns:
        Which of D detections are hits, and which of G boxes are found.
    """
    hit, used = (np.zeros(n, dtype=bool) for n in overlap.shape)
    free = overlap.copy()
    for d in np.flatnonzero(overlap.max(axis=1, initial=0.0) >= FOREGROUND):
        g = free[d].argmax()
        if free[d, g] >= FOREGROUND:
            hit[d] = used[g] = True
            free[:, g] = 0.0
    return hit, used


def _kind(overlap: Floats, same_class: Bools) -> Labels:
    """(D,) kind of each detection, were it a false positive (section 2.2 of the paper)."""

    def best(of: Bools) -> Floats:
        greatest: Floats = np.where(of, overlap, 0.0).max(axis=1, initial=0.0)
        return greatest

    same, other = best(same_class), best(~same_class)
    conditions = [
        (same >= BACKGROUND) & (same <= FOREGROUND),
        other >= FOREGROUND,
        same >= FOREGROUND,  # of a box that a better detection has found, or this one were a hit
        np.maximum(same, other) <= BACKGROUND,
    ]
    return np.select(conditions, [_LOC, _CLS, _DUPE, _BKG], _BOTH)


def _correct(
    kind: Labels, overlap: Floats, same_class: Bools, true_labels: Labels, used: Bools
) -> tuple[Labels, Bools]:
    """Find out which Cls and Loc errors become hits when corrected, and which ground truth they claim.

    Returns:
        (D,) label of that hit or 0, and (G,) bool.
    """
    corrected = np.zeros(len(kind), dtype=np.int64)
    claimed = np.zeros(len(used), dtype=bool)
    for d in np.flatnonzero((kind == _CLS) | (kind == _LOC)):
        g = np.where(same_class[d] == (kind[d] == _LOC), overlap[d], 0.0).argmax()
        if not used[g] and not claimed[g]:
            corrected[d] = true_labels[g]
            claimed[g] = True
    return corrected, claimed


def _mean_ap(labels: Labels, hit: Bools, positives: Labels, present: Bools) -> float:
    """Mean AP at IoU 0.5 of the classes that are ``present``, nan if there are none.

    A class that has nothing left to find and no detections either is left out.

    Args:
        labels: (N,) of detections, best first.
        hit: (N,) whether they are true positives; the others are false ones.
        positives: (K + 1,) to find, of each label.
        present: (K + 1,) which classes count.
    """
    values = []
    for label in np.flatnonzero(present).tolist():
        hits = np.flatnonzero(hit[labels == label]) + 1
        if positives[label]:
            found = np.arange(1, len(hits) + 1)
            to_find = positives[label : label + 1].astype(np.float64)
            values.append(float(average_precision(found[:, None], hits[:, None], to_find)[0]))
        elif (labels == label).any():
            values.append(0.0)
    return math.fsum(values) / len(values) if values else math.nan


def _join(parts: Sequence[Sorted], classes: int) -> Sorted:
    none = np.zeros(0, dtype=np.int64)
    nothing = Sorted(
        none.astype(float), none, none, none.astype(bool), none, *[np.zeros(classes + 1, int)] * 3
    )
    columns = [np.concatenate(column) for column in list(zip(nothing, *parts, strict=True))[:5]]
    totals = [np.sum(column, axis=0) for column in list(zip(nothing, *parts, strict=True))[5:]]
    return Sorted(*columns, *totals)

"""Settings of the detectors that the data decide: resize, anchors and normalisation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from defeat.detectors import read_weights
from defeat.types import Record

log = logging.getLogger(__name__)

SIZES = ("min_size", "max_size", "anchor_sizes")

LARGEST = 640
"""Pixels of the shorter side, at most, unless small objects need more."""

JITTER = (0.75, 0.875, 1.125, 1.0)
"""Factors of the shorter side that are drawn in training; the last one is that of evaluation."""

SMALL_OBJECT = 16.0
"""Pixels that the side of a small object (the 10th percentile) should have after the resize."""

MOST_ENLARGED = 2.0


def fit_to_data(config: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Fill in what the student leaves to the data (null), and take the teacher's sizes from its checkpoint.

    Args:
        config: of a run, in plain containers.
        records: of the training split, in which the same settings follow from the same records.

    Returns:
        A copy with the student's null sizes filled in. A student without weights whose norms would be frozen
        learns them and all layers. The sizes of a teacher whose checkpoint records them are those.
    """
    fitting = copy.deepcopy(dict(config))
    student = fitting["student"]
    fitted = fitted_sizes(student["model"]["_target_"], records)
    filled = {key: fitted[key] for key in fitted if key in student["model"] and student["model"][key] is None}
    model = student["model"]
    if not student.get("weights") and not student.get("backbone_weights") and model.get("norm") == "frozen":
        filled |= {"norm": "batch", "trainable_layers": 5}
    model.update(filled)
    if filled:
        log.info("from the data: %s", " ".join(f"student.model.{k}={v}" for k, v in filled.items()))
    teacher = fitting.get("teacher")
    if teacher and teacher.get("weights"):
        recorded = (read_weights(teacher["weights"], download=teacher["download"]).config or {}).get(
            "student"
        )
        trained = (recorded or {}).get("model", {})
        node = teacher["model"]
        node |= {key: trained[key] for key in SIZES if key in trained and key in node}
        # Where nothing says more, a builder's own: torchvision's take no null.
        teacher["model"] = {key: x for key, x in node.items() if x is not None or key not in SIZES}
    return fitting


def fitted_sizes(builder: str, records: Sequence[Record]) -> dict[str, Any]:
    """Choose resize and anchors for a training split.

    The shorter side is the median one of the pictures, at most 640 pixels, and up to twice as large where a
    tenth of the objects would be smaller than 16 pixels. The finest anchors are as large as the largest of
    that tenth, between 8 and 32 pixels (a rare class may be smaller), and every level's are twice those of
    the one before.

    Args:
        builder: the detector's ``_target_``, such as ``defeat.detectors.retinanet``.
        records: at least one; those of unknown size do not count.
    """
    known = [record for record in records if record.width and record.height]
    sides = np.array([[record.height, record.width] for record in known] or [[480, 640]], dtype=float)
    short, long = sides.min(1), sides.max(1)  # (N,) each
    shares = [_object_sides(record) / min(record.height, record.width) for record in known]
    objects = np.concatenate([np.empty(0), *shares])  # (M,), of the shorter side
    size = min(float(np.median(short)), LARGEST)
    small = float(np.percentile(objects, 10)) if len(objects) else 0.1  # of the shorter side
    if small > 0:
        size *= min(max(1.0, SMALL_OBJECT / (small * size)), MOST_ENLARGED)
    size = _multiple(size, 32)
    aspect = float(np.percentile(long / short, 95))
    longest = _multiple(size * max(JITTER) * aspect, 32)
    finest = float(np.clip(small * size, 8, 32))
    family = builder.rpartition(".")[2]
    return {
        "min_size": [_multiple(size * factor, 32) for factor in JITTER],
        "max_size": longest,
        "anchor_sizes": _anchor_sizes(family, finest),
    }


def _anchor_sizes(family: str, finest: float) -> list[list[int]]:
    base = [finest * 2**level for level in range(5)]
    if family == "retinanet":
        return [[round(side * 2 ** (octave / 3)) for octave in range(3)] for side in base]
    if family == "fcos":  # takes objects of up to 16 squares on its finest level
        return [[max(1, round(finest / 4)) * 2**level] for level in range(5)]
    return [[4 * max(1, round(finest / 4)) * 2**level] for level in range(5)]


def _object_sides(record: Record) -> np.ndarray[Any, Any]:
    boxes = record.boxes[~record.ignore]
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))  # (N,)


def _multiple(side: float, of: int) -> int:
    return max(of, of * round(side / of))

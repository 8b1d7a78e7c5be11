"""Settings of the detectors that the data decide: resize, anchors and normalisation."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from defeat.config import build, build_factory
from defeat.data.images import read_header
from defeat.data.pictures import spread
from defeat.detectors import read_weights
from defeat.errors import DataError
from defeat.types import Record

log = logging.getLogger(__name__)

RESIZE = ("min_size", "max_size")

SIZES = (*RESIZE, "anchor_sizes")

TRAINED = (*SIZES, "stride_in_1x1")
"""Settings of a teacher that its checkpoint records, and that shapes of weights do not show."""

MEASURED = 200
"""Pictures whose headers are read where the records tell no sizes."""

LARGEST = 640
"""Pixels of the shorter side, at most, unless small objects need more."""

JITTER = (0.75, 0.875, 1.125, 1.0)
"""Factors of the shorter side that are drawn in training; the last one is that of evaluation."""

SMALL_OBJECT = 16.0
"""Pixels that the side of a small object (the 10th percentile) should have after the resize."""

MOST_ENLARGED = 2.0

ROIS, ROIS_PER_IMAGE = "box_batch_size_per_image", 128
"""Proposals that the box head learns from, as detectron2 advises for small data sets: a step takes half as
long as with 512, of which few hold an object."""


def fit_to_data(config: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Fill in what the detectors of a run leave open (null).

    The teacher's settings are those of its checkpoint, or else those of its builder. The student
    takes it over, since the teacher is shown the student's images; without a teacher the data decide. Where
    the student's is given and nothing says the teacher's, the teacher takes that one over.

    Args:
        config: of a run, in plain containers.
        records: of the training split, in which the same settings follow from the same records.

    Returns:
        A copy with the null sizes filled in; a student that starts from a whole detector's weights keeps the
        anchors of their training. A student without weights whose norms would be frozen learns them and all
        layers.

    Raises:
        DataError: no record and no picture tells its size.
    """
    fitting = copy.deepcopy(dict(config))
    student, teacher = fitting["student"], fitting.get("teacher")
    model = student["model"]
    is_given = any(model.get(key) for key in RESIZE)
    if teacher:
        teacher["model"] = _as_trained(teacher)
        if not is_given:
            _fill("student", "teacher", model, _teacher_resize(teacher["model"]))
    given = {key: model.get(key) for key in RESIZE}
    filled: dict[str, Any] = fitted_sizes(
        model["_target_"], records, stages=len(model.get("returned_layers") or ()) or None, **given
    )
    if student.get("weights"):  # whose boxes are relative to the anchors of their training
        del filled["anchor_sizes"]
        _fill("student", "weights", model, {"anchor_sizes": _recorded(student).get("anchor_sizes")})
    if not student.get("weights") and not student.get("backbone_weights") and model.get("norm") == "frozen":
        model |= {"norm": None, "trainable_layers": None}
        filled |= {"norm": "batch", "trainable_layers": 5}
    _fill("student", "data", model, filled)
    for role, detector in (("student", student), ("teacher", teacher)):
        if detector and ROIS in detector["model"] and "rcnn" not in detector["model"]["_target_"]:
            del detector["model"][ROIS]  # of recipes for all families; one-stage detectors have none
        elif detector:
            _fill(role, "recipe", detector["model"], {ROIS: ROIS_PER_IMAGE})
    if teacher and is_given and not teacher["model"].keys() & RESIZE:
        resize = {"min_size": _listed(model["min_size"])[-1], "max_size": model["max_size"]}
        teacher["model"] |= dict.fromkeys(RESIZE)
        _fill("teacher", "student", teacher["model"], resize)
    return fitting


def _fill(role: str, origin: str, model: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Set what a detector has and leaves open, and log it."""
    filled = {k: v for k, v in settings.items() if v is not None and k in model and model[k] is None}
    model.update(filled)
    if filled:
        log.info("from the %s: %s", origin, " ".join(f"{role}.model.{k}={v}" for k, v in filled.items()))


def _as_trained(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a teacher's checkpoint records; what nothing says is left to its builder."""
    node = dict(teacher["model"])
    if teacher.get("weights"):
        _fill("teacher", "checkpoint", node, _recorded(teacher))
    # torchvision's builders take no null
    return {key: value for key, value in node.items() if value is not None or key not in TRAINED}


def _recorded(detector: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the checkpoint of a detector records, of this project alone."""
    recorded = read_weights(detector["weights"], download=detector["download"]).config or {}
    trained = recorded.get("student", {}).get("model", {})
    return {key: trained[key] for key in TRAINED if key in trained}


def _teacher_resize(model: Mapping[str, Any]) -> dict[str, Any]:
    """The resize of a detector, with jitter in training; none for one whose images all have one size."""
    node = OmegaConf.create({"teacher": {"model": dict(model)}}).teacher.model
    parameters = inspect.signature(build(node).func).parameters
    without = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    with torch.device("meta"):
        transform = getattr(build_factory(node)(num_classes=2, **without), "transform", None)
    if transform is None or transform.fixed_size:
        return {}
    *drawn, size = transform.min_size
    drawn = drawn or [_multiple(size * factor, 32) for factor in JITTER[:-1]]
    return {"min_size": [*drawn, size], "max_size": transform.max_size}


def fitted_sizes(
    builder: str,
    records: Sequence[Record],
    min_size: int | Sequence[int] | None = None,
    max_size: int | None = None,
    stages: int | None = None,
) -> dict[str, Any]:
    """Choose resize and anchors for a training split.

    The shorter side is the median one of the pictures, at most 640 pixels, and up to twice as large where a
    tenth of the objects would be smaller than 16 pixels. The finest anchors are as large as the largest of
    that tenth, between 8 and 32 pixels (a rare class may be smaller), and every level's are twice those of
    the one before.

    Args:
        builder: the detector's ``_target_``, such as ``defeat.detectors.retinanet``.
        records: at least one. Where none tells its size, some of the pictures do.
        min_size: pixels of the shorter side, where they are given; the last one is that of evaluation.
        max_size: pixels of the longer side at most, where they are given.
        stages: of the backbone on which the pyramid stands; None for those of its builder.

    Raises:
        DataError: no record and no picture tells its size.
    """
    known = [record for record in records if record.width and record.height] or _measured(records)
    sides = np.array([(record.height, record.width) for record in known], dtype=float)
    short, long = sides.min(1), sides.max(1)  # (N,) each
    shares = [_object_sides(record) / min(record.height, record.width) for record in known]
    objects = np.concatenate([np.empty(0), *shares])  # (M,), of the shorter side
    small = float(np.percentile(objects, 10)) if len(objects) else 0.1  # of the shorter side
    if min_size is None:
        size = min(float(np.median(short)), LARGEST)
        if small > 0:
            size *= min(max(1.0, SMALL_OBJECT / (small * size)), MOST_ENLARGED)
        size = _multiple(size, 32)
        min_size = [_multiple(size * factor, 32) for factor in JITTER]
    sizes = _listed(min_size)
    if max_size is None:
        max_size = 32 * math.ceil(max(sizes) * float(np.percentile(long / short, 95)) / 32)
    size = min(sizes[-1], max_size / float(np.median(long / short)))
    family = builder.rpartition(".")[2]
    finest = float(np.clip(small * size, 8, 32))
    return {"min_size": sizes, "max_size": max_size, "anchor_sizes": _anchor_sizes(family, finest, stages)}


def _listed(sizes: int | Sequence[int]) -> list[int]:
    """Return the sizes that training draws from, of which the last one is that of evaluation."""
    return [sizes] if isinstance(sizes, int) else list(sizes)


def _measured(records: Sequence[Record]) -> list[Record]:
    """Give some records, from all over, the sizes that their pictures' headers tell."""
    measured = []
    for record in (records[i] for i in spread(len(records), MEASURED)):
        with suppress(DataError):
            width, height = read_header(record.path).turned_size
            measured.append(record._replace(width=width, height=height))
    if not measured:
        raise DataError(
            f"no picture tells its size, such as {records[0].path}: correct the paths, or set "
            "student.model.min_size, max_size and anchor_sizes"
            if records
            else "fit_to_data=true has no training image to go by"
        )
    return measured


def _anchor_sizes(family: str, finest: float, stages: int | None) -> list[list[int]]:
    """Choose the sizes of each level: those of the stages, P6, and P7 of one-stage detectors."""
    one_stage = family in ("retinanet", "fcos")
    levels = 5 if stages is None else stages + (2 if one_stage else 1)
    if family == "retinanet":
        base = [finest * 2**level for level in range(levels)]
        return [[round(side * 2 ** (octave / 3)) for octave in range(3)] for side in base]
    # FCOS takes objects of up to 16 squares on its finest level, Faster R-CNN has anchors of 4 sizes
    unit = max(1, round(finest / 4)) * (1 if one_stage else 4)
    return [[unit * 2**level] for level in range(levels)]


def _object_sides(record: Record) -> np.ndarray[Any, Any]:
    boxes = record.boxes[~record.ignore]
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))  # (N,)


def _multiple(side: float, of: int) -> int:
    return max(of, of * round(side / of))

"""The detections of one validation beside the ground truth, in one file, by which reports compare runs.

The file stands by itself: figures, bootstrap and error analysis need neither the data set nor the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from defeat.errors import DataError, StorageError
from defeat.evaluation.coco_metrics import DEFAULT_MAX_DETS
from defeat.evaluation.image_result import ImageResult
from defeat.io.atomic_write import replacing

DETECTIONS_FILE = "detections.safetensors"
"""Name of the file in a run's folder."""


class Detections(NamedTuple):
    """All detections of a detector on a split, beside the ground truth."""

    images: dict[int, ImageResult]
    """Position in the data set, in ascending order, to the image's detections and ground truth."""
    classes: tuple[str, ...]
    """K names; label i stands for ``classes[i - 1]``."""
    step: int
    """Optimiser steps the detector had been trained for."""
    max_dets: int = DEFAULT_MAX_DETS
    """Detections that counted for the COCO metrics, of an image and class."""


def write_detections(path: Path, detections: Detections) -> None:
    """Write to a file, whole or not at all.

    Detections are stored as float32, which is what detectors compute in; ground truth stays float64.
    """
    images = [detections.images[index] for index in sorted(detections.images)]
    counts = [[len(image.boxes), len(image.true_boxes)] for image in images]
    tensors = {
        "index": torch.tensor(sorted(detections.images), dtype=torch.int64),
        "counts": torch.tensor(counts, dtype=torch.int64).reshape(-1, 2),
        "boxes": _join([image.boxes for image in images], torch.float32, 4),
        "scores": _join([image.scores for image in images], torch.float32),
        "labels": _join([image.labels for image in images], torch.int64),
        "true_boxes": _join([image.true_boxes for image in images], torch.float64, 4),
        "true_labels": _join([image.true_labels for image in images], torch.int64),
        "ignore": _join([image.ignore for image in images], torch.bool),
        "area": _join([image.area for image in images], torch.float64),
    }
    about = {
        "classes": json.dumps(detections.classes),
        "step": str(detections.step),
        "max_dets": str(detections.max_dets),
    }
    try:
        with replacing(path) as part:
            save_file(tensors, part, about)
    except SafetensorError as error:  # its text is the operating system's message
        raise StorageError(f"{path} cannot be written: {error}") from error


def read_detections(path: Path) -> Detections:
    """Read what :func:`write_detections` wrote.

    Raises:
        DataError: the file is missing or is not such a file.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        most = int(about.get("max_dets", DEFAULT_MAX_DETS))  # older files do not say
        return Detections(_split(tensors), tuple(json.loads(about["classes"])), int(about["step"]), most)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} does not hold the detections of a validation ({error})") from error


def _join(parts: Sequence[Tensor], dtype: torch.dtype, *columns: int) -> Tensor:
    return torch.cat([torch.empty(0, *columns, dtype=dtype), *(part.to(dtype) for part in parts)])


def _split(tensors: Mapping[str, Tensor]) -> dict[int, ImageResult]:
    detected, true = tensors["counts"].unbind(1)
    predicted = [tensors[name].split(detected.tolist()) for name in ("boxes", "scores", "labels")]
    truth = [tensors[name].split(true.tolist()) for name in ("true_boxes", "true_labels", "ignore", "area")]
    images = {}
    for index, boxes, scores, *rest in zip(tensors["index"].tolist(), *predicted, *truth, strict=True):
        images[index] = ImageResult(boxes.double(), scores.double(), *rest)
    return images

"""The 12 COCO figures and the AP of each class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor

from defeat.evaluation.evaluation import COCO_KEYS
from defeat.evaluation.image_result import ImageResult
from defeat.gc_pause import pause_gc

_IOU_THRESHOLDS, _RECALLS, _AREAS, _MOST = (
    10,
    101,
    4,
    3,
)  # of the evaluator: 0.5, 0.55, ...; 1, 10, 100 detections
_ALL, _SMALL, _MEDIUM, _LARGE = range(_AREAS)


class _Curves(NamedTuple):
    """What the figures are means of; -1 where there is no ground truth to measure by."""

    precision: NDArray[np.float64]
    """(K, 10, 101, 4) by class, IoU threshold, recall and area, with the most detections."""
    recall: NDArray[np.float64]
    """(K, 10, 4, 3) by class, IoU threshold, area and most detections."""


def coco_metrics(
    images: Sequence[ImageResult], classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute the COCO figures (https://cocodataset.org/#detection-eval), equal to pycocotools' ones.

    At most 100 detections count per image and class. Detections of equal score count in the order of
    ``images``, then in their order within the image.

    The evaluator works on an object for each box, about 1 kB. It is given one class after the other, of which
    all figures are means, so that only the boxes of one class are objects at a time.

    Args:
        images: Any number of images, none twice.
        classes: K names; label i stands for ``classes[i - 1]``.

    Returns:
        The figure of each of the 12 keys, and the AP of each class name; nan where there is no ground truth
        to measure by.
    """
    curves = _curves(images, len(classes))
    per_class = {
        name: _mean(of_class[..., _ALL]) for name, of_class in zip(classes, curves.precision, strict=True)
    }
    return _figures(curves), per_class


def xywh(boxes: Tensor) -> Tensor:
    """Turn (N, 4) xyxy into xywh as the annotation file gave it.

    In binary, x + width - x is not quite the width. Rounding to a millionth of a pixel, far below what
    float32 boxes resolve, takes the last bits off: an overlap of 3 / 5 is 0.6 here as in pycocotools.
    """
    corner = boxes[:, :2]
    return torch.cat([corner, (boxes[:, 2:] - corner).round(decimals=6)], dim=1)


def _figures(curves: _Curves) -> dict[str, float]:
    precision, recall = curves
    sizes = (_SMALL, _MEDIUM, _LARGE)
    parts = [
        precision[..., _ALL],
        *(precision[:, threshold, :, _ALL] for threshold in (0, 5)),
        *(precision[..., size] for size in sizes),
        *(recall[..., _ALL, most] for most in range(_MOST)),
        *(recall[..., size, -1] for size in sizes),
    ]
    return {key: _mean(part) for key, part in zip(COCO_KEYS, parts, strict=True)}


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of what could be measured. COCO's -1 would be a wrong number in a table or an average."""
    measured = values[values >= 0]
    return float(measured.mean()) if measured.size else math.nan


def _curves(images: Sequence[ImageResult], classes: int) -> _Curves:
    precision = np.full((classes, _IOU_THRESHOLDS, _RECALLS, _AREAS), -1.0)
    recall = np.full((classes, _IOU_THRESHOLDS, _AREAS, _MOST), -1.0)
    found = _by_class([(image.boxes, image.labels, image.scores) for image in images], classes)
    true = _by_class(
        [(image.true_boxes, image.true_labels, image.area, image.ignore) for image in images], classes
    )
    for label, (detections, truths) in enumerate(zip(found, true, strict=True)):
        if len(truths[0]):
            with pause_gc():
                precision[label], recall[label] = _evaluate(detections, truths)
    return _Curves(precision, recall)


_Columns = list[NDArray[Any]]


def _by_class(images: Sequence[Sequence[Tensor]], classes: int) -> Iterator[_Columns]:
    """For each class the number of the image, the boxes as xywh, and what follows the labels, in order."""
    if not images:
        return iter([[np.empty(0)] * 2] * classes)
    boxes, labels, *more = (torch.cat(column) for column in zip(*images, strict=True))
    number = np.repeat(np.arange(len(images)), [len(image[0]) for image in images])
    columns = [number, xywh(boxes).numpy(), *(column.numpy() for column in more)]
    order = labels.argsort(stable=True).numpy()
    ends = labels.bincount(minlength=classes + 1).cumsum(0).tolist()
    places = (order[start:end] for start, end in pairwise(ends))
    return ([column[place] for column in columns] for place in places)


def _evaluate(detections: _Columns, truths: _Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(10, 101, 4) precision and (10, 4, 3) recall of one class."""
    number, boxes, scores = detections
    found = _boxes(number, boxes, boxes[:, 2] * boxes[:, 3], score=scores)
    number, boxes, area, crowd = truths
    true = _boxes(number, boxes, area, iscrowd=crowd.astype(np.int64))
    images = np.union1d(detections[0], truths[0]).tolist()
    evaluation = COCOeval_faster(_data_set(images, true), _data_set(images, found), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, :, -1], evaluation.eval["recall"][:, 0]


def _boxes(
    number: NDArray[np.int64], boxes: NDArray[np.float64], area: NDArray[np.float64], **more: NDArray[Any]
) -> list[dict[str, Any]]:
    columns = {"image_id": number, "bbox": boxes, "area": area, **more}
    names = ("id", "category_id", *columns)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(names, (place, 1, *row), strict=True)) for place, row in enumerate(rows, start=1)]


def _data_set(images: list[int], annotations: list[dict[str, Any]]) -> COCO:
    data = COCO()
    data.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": 1, "name": "1"}],
        "annotations": annotations,
    }
    data.createIndex()
    return data

"""The 12 COCO metrics and the AP of each class, by faster-coco-eval or by pycocotools."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import faster_coco_eval
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from defeat.errors import ConfigError
from defeat.evaluation.evaluation import COCO_KEYS
from defeat.evaluation.image_result import ImageResult
from defeat.evaluation.matching import xywh
from defeat.gc_pause import pause_gc

Backend = Literal["faster_coco_eval", "pycocotools"]

DEFAULT_BACKEND: Backend = "faster_coco_eval"

DEFAULT_MAX_DETS = 100
"""COCO's own limit."""

FEWER_DETECTIONS = (1, 10)
"""The numbers of detections that AR1 and AR10 are about."""

_ENGINES: Mapping[Backend, tuple[type[Any], type[Any]]] = {
    "faster_coco_eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "pycocotools": (COCO, COCOeval),
}
"""The data set and the evaluator of each engine; both have pycocotools' interface."""

# Sizes of an evaluator's results: IoU thresholds 0.5, 0.55, ..., recalls, areas, and 1, 10, max_dets
# detections.
_THRESHOLDS, _RECALLS, _AREAS, _MAX_DETECTIONS = 10, 101, 4, 3
_ALL, _SMALL, _MEDIUM, _LARGE = range(_AREAS)


class CocoCurves(NamedTuple):
    """The values that the metrics are means of; -1 where there is no ground truth to measure by."""

    precision: NDArray[np.float64]
    """(K, 10, 101, 4) by class, IoU threshold, recall and area, with at most ``max_dets`` detections."""
    recall: NDArray[np.float64]
    """(K, 10, 4, 3) by class, IoU threshold, area and number of detections."""
    scores: NDArray[np.float64]
    """(K, 10, 101, 4) score of the detection with which that recall is reached; 0 where it is not."""
    positives: NDArray[np.int64]
    """(K,) number of ground truth boxes to find."""


def check_backend(name: object) -> Backend:
    """Return ``name`` if it is an engine.

    Raises:
        ConfigError: there is no such engine.
    """
    if name not in _ENGINES:
        raise ConfigError(f"evaluation.backend={name} is none of {', '.join(_ENGINES)}")
    return cast(Backend, name)


def check_max_dets(number: object) -> int:
    """Return ``number`` if COCO figures can be computed with it.

    Raises:
        ConfigError: it is no whole number, or less than 10, which AR10 needs, or more than a million.
    """
    if not isinstance(number, int) or not FEWER_DETECTIONS[-1] <= number <= 1_000_000:
        raise ConfigError(
            f"evaluation.max_dets={number} must be a whole number of at least 10 and at most a million; "
            "COCO's is 100"
        )
    return number


def coco_metrics(
    images: Sequence[ImageResult],
    classes: Sequence[str],
    backend: Backend = DEFAULT_BACKEND,
    max_dets: int = DEFAULT_MAX_DETS,
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute the COCO metrics (https://cocodataset.org/#detection-eval).

    At most ``max_dets`` detections count per image and class. Detections of equal score count in the order of
    ``images``, then in their order within the image.

    The evaluator works on an object for each box, about 1 kB. It is given one class after the other, of which
    all metrics are means, so that only the boxes of one class are objects at a time.

    Args:
        images: any number of images, none twice.
        classes: K names; label i stands for ``classes[i - 1]``.
        backend: the engine; both give the same numbers, and pycocotools takes several times as long.
        max_dets: all figures but AR1 and AR10 are of so many detections, also AR100.

    Returns:
        The value of each of the 12 keys, and the AP of each class name; nan where there is no ground truth
        to measure by.
    """
    return metrics_of_curves(coco_curves(images, len(classes), backend, max_dets), classes)


def metrics_of_curves(
    curves: CocoCurves, classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Average curves to what :func:`coco_metrics` returns."""
    per_class = {
        name: _mean(precision[..., _ALL]) for name, precision in zip(classes, curves.precision, strict=True)
    }
    return _metrics(curves), per_class


def _metrics(curves: CocoCurves) -> dict[str, float]:
    precision, recall = curves.precision, curves.recall
    sizes = (_SMALL, _MEDIUM, _LARGE)
    averaged = [
        precision[..., _ALL],
        *(precision[:, threshold, :, _ALL] for threshold in (0, 5)),
        *(precision[..., size] for size in sizes),
        *(recall[..., _ALL, most] for most in range(_MAX_DETECTIONS)),
        *(recall[..., size, -1] for size in sizes),
    ]
    return {key: _mean(values) for key, values in zip(COCO_KEYS, averaged, strict=True)}


def _mean(values: NDArray[np.float64]) -> float:
    """Average what could be measured. COCO's -1 would be a wrong number in a table or an average."""
    measured = values[values >= 0]
    return float(measured.mean()) if measured.size else math.nan


def coco_curves(
    images: Sequence[ImageResult],
    classes: int,
    backend: Backend = DEFAULT_BACKEND,
    max_dets: int = DEFAULT_MAX_DETS,
) -> CocoCurves:
    """Compute the curves that all figures follow from. Arguments are those of :func:`coco_metrics`.

    Args:
        images: any number of images, none twice.
        classes: K, their number.
        backend: the engine.
        max_dets: detections that count, of an image and class.
    """
    precision = np.full((classes, _THRESHOLDS, _RECALLS, _AREAS), -1.0)
    scores = precision.copy()
    positives = np.zeros(classes, dtype=np.int64)
    recall = np.full((classes, _THRESHOLDS, _AREAS, _MAX_DETECTIONS), -1.0)
    detections = _by_class([(image.boxes, image.labels, image.scores) for image in images], classes)
    truths = _by_class(
        [(image.true_boxes, image.true_labels, image.area, image.ignore) for image in images], classes
    )
    for label, (detected, true) in enumerate(zip(detections, truths, strict=True)):
        if len(true[0]):
            with pause_gc():
                precision[label], recall[label], scores[label] = _evaluate(detected, true, backend, max_dets)
            positives[label] = np.count_nonzero(~true[-1])  # crowds are not to be found
    return CocoCurves(precision, recall, scores, positives)


_Columns = list[NDArray[Any]]


def _by_class(images: Sequence[Sequence[Tensor]], classes: int) -> Iterator[_Columns]:
    """Yield for each class the number of the image, the boxes as xywh, and what follows the labels."""
    if not images:
        return iter([[np.empty(0)] * 2] * classes)
    boxes, labels, *more = (torch.cat(column) for column in zip(*images, strict=True))
    number = np.repeat(np.arange(len(images)), [len(image[0]) for image in images])
    columns = [number, xywh(boxes).numpy(), *(column.numpy() for column in more)]
    order = labels.argsort(stable=True).numpy()
    ends = labels.bincount(minlength=classes + 1).cumsum(0).tolist()
    rows = (order[start:end] for start, end in pairwise(ends))
    return ([column[row] for column in columns] for row in rows)


def _evaluate(
    detections: _Columns, truths: _Columns, backend: Backend, max_dets: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(10, 101, 4) precision, (10, 4, 3) recall and (10, 101, 4) scores of one class."""
    number, boxes, scores = detections
    detected = _annotations(number, boxes, boxes[:, 2] * boxes[:, 3], score=scores)
    number, boxes, area, crowd = truths
    true = _annotations(number, boxes, area, iscrowd=crowd.astype(np.int64))
    images = np.union1d(detections[0], truths[0]).tolist()
    data_set, evaluator = _ENGINES[backend]
    with _silence(backend):
        evaluation = evaluator(
            _data_set(data_set(), images, true), _data_set(data_set(), images, detected), iouType="bbox"
        )
        evaluation.params.maxDets = [*FEWER_DETECTIONS, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    found = evaluation.eval
    return found["precision"][:, :, 0, :, -1], found["recall"][:, 0], found["scores"][:, :, 0, :, -1]


def _silence(backend: Backend) -> AbstractContextManager[Any]:
    """Swallow what pycocotools prints; a progress bar may write meanwhile, so no other output is touched."""
    return redirect_stdout(io.StringIO()) if backend == "pycocotools" else nullcontext()


def _annotations(
    number: NDArray[np.int64], boxes: NDArray[np.float64], area: NDArray[np.float64], **more: NDArray[Any]
) -> list[dict[str, Any]]:
    columns = {"image_id": number, "bbox": boxes, "area": area, **more}
    names = ("id", "category_id", *columns)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(names, (position, 1, *row), strict=True)) for position, row in enumerate(rows, start=1)]


def _data_set(data: Any, images: list[int], annotations: list[dict[str, Any]]) -> Any:
    data.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": 1, "name": "1"}],
        "annotations": annotations,
    }
    data.createIndex()
    return data

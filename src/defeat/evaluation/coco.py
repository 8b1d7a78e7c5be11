"""The 12 COCO figures and the AP of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from defeat.evaluation.evaluation import COCO_KEYS
from defeat.evaluation.image_result import ImageResult

_TORCHMETRICS_KEYS = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
)

# torchmetrics' own defaults are these numbers rounded to float32: its 0.6 is 0.60000002, so a box that
# overlaps by exactly 0.6 misses there and matches in pycocotools. Whole pixels make such overlaps common.
_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
_RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101).tolist()

# torchmetrics takes area 0 for "not given" and puts the box's in its place. Any positive number below
# 32 ** 2 counts as 0 does.
_SMALLEST_AREA = 1e-6


def coco_figures(
    images: Sequence[ImageResult], classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute the COCO figures (https://cocodataset.org/#detection-eval), equal to pycocotools' ones.

    At most 100 detections count per image and class. Detections of equal score count in the order of
    ``images``, then in their order within the image.

    Args:
        images: Any number of images, none twice.
        classes: K names; label i stands for ``classes[i - 1]``.

    Returns:
        The figure of each of the 12 keys, and the AP of each class name; nan where there is no ground truth
        to measure by.
    """
    metric = MeanAveragePrecision(
        box_format="xywh",
        iou_thresholds=_IOU_THRESHOLDS,
        rec_thresholds=_RECALL_THRESHOLDS,
        max_detection_thresholds=[1, 10, 100],
        class_metrics=True,
        backend="faster_coco_eval",
        sync_on_compute=False,  # `images` are already those of all ranks
    )
    metric.warn_on_many_detections = False
    metric.update([_detections(image) for image in images], [_truth(image) for image in images])
    result = metric.compute()
    coco = {
        key: _figure(float(result[name])) for key, name in zip(COCO_KEYS, _TORCHMETRICS_KEYS, strict=True)
    }
    return coco, _per_class(result, classes)


def _detections(image: ImageResult) -> dict[str, Tensor]:
    return {"boxes": xywh(image.boxes), "scores": image.scores, "labels": image.labels}


def _truth(image: ImageResult) -> dict[str, Tensor]:
    return {
        "boxes": xywh(image.true_boxes),
        "labels": image.true_labels,
        "iscrowd": image.ignore.long(),
        "area": image.area.clamp_min(_SMALLEST_AREA),
    }


def xywh(boxes: Tensor) -> Tensor:
    """Turn (N, 4) xyxy into xywh as the annotation file gave it.

    In binary, x + width - x is not quite the width. Rounding to a millionth of a pixel, far below what
    float32 boxes resolve, takes the last bits off: an overlap of 3 / 5 is 0.6 here as in pycocotools.
    """
    corner = boxes[:, :2]
    return torch.cat([corner, (boxes[:, 2:] - corner).round(decimals=6)], dim=1)


def _figure(value: float) -> float:
    """COCO's -1 stands for "nothing to measure"; in a table or an average it would be a wrong number."""
    return math.nan if value < 0 else value


def _per_class(result: dict[str, Tensor], classes: Sequence[str]) -> dict[str, float]:
    """Give each class its AP; torchmetrics lists only the labels that occur, none if there are no images."""
    per_class = dict.fromkeys(classes, math.nan)
    labels = result["classes"].reshape(-1).tolist()
    values = result["map_per_class"].reshape(-1).tolist() if labels else []
    for label, value in zip(labels, values, strict=True):
        per_class[classes[label - 1]] = _figure(value)
    return per_class

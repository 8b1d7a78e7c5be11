"""The detections of one image beside its ground truth, from which every figure is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from defeat.types import Prediction, Target


class ImageResult(NamedTuple):
    """Detections and ground truth of one image, on the CPU.

    Boxes, scores and areas are float64, because the reference implementations compute in float64 and an
    overlap that equals a threshold must fall on the same side as theirs.
    """

    boxes: Tensor
    """(N, 4) float64 xyxy pixels, detections."""
    scores: Tensor
    """(N,) float64."""
    labels: Tensor
    """(N,) int64, 1..K."""
    true_boxes: Tensor
    """(M, 4) float64 xyxy pixels, ground truth."""
    true_labels: Tensor
    """(M,) int64, 1..K."""
    ignore: Tensor
    """(M,) bool: COCO ``iscrowd``, VOC ``difficult``."""
    area: Tensor
    """(M,) float64, square pixels."""


def to_image_result(prediction: Prediction, target: Target) -> ImageResult:
    """Put the detections of one image beside its ground truth."""
    return ImageResult(
        boxes=prediction["boxes"].to("cpu", torch.float64).reshape(-1, 4),
        scores=prediction["scores"].to("cpu", torch.float64),
        labels=prediction["labels"].to("cpu", torch.int64),
        true_boxes=target["boxes"].to("cpu", torch.float64).reshape(-1, 4),
        true_labels=target["labels"].to("cpu", torch.int64),
        ignore=target["ignore"].to("cpu", torch.bool),
        area=target["area"].to("cpu", torch.float64),
    )

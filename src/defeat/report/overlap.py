"""Overlaps of boxes exactly as the COCO figures see them."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from defeat.evaluation.coco_metrics import xywh

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def as_numpy(boxes: Tensor) -> Floats:
    """(N, 4) float64 xyxy as xywh: an overlap that equals a threshold must fall on the same side as there."""
    return cast(Floats, xywh(boxes).numpy())


def overlaps(found: Floats, true: Floats, crowd: Bools) -> Floats:
    """IoU of (D, 4) detections with (G, 4) ground truth, both xywh; (D, G).

    With ground truth that is marked in (G,) ``crowd`` it is the intersection over the detection's own area,
    as in pycocotools (``maskApi.c``), and computed in the same order, for the same last bits.
    """
    found, true = found[:, None, :], true[None, :, :]
    near = np.maximum(found[..., :2], true[..., :2])
    far = np.minimum(found[..., 2:] + found[..., :2], true[..., 2:] + true[..., :2])
    both = np.prod(np.maximum(far - near, 0.0), axis=-1)
    own, theirs = found[..., 2] * found[..., 3], true[..., 2] * true[..., 3]
    whole = np.where(crowd, own, own + theirs - both)
    shares: Floats = np.divide(both, whole, out=np.zeros_like(both), where=both > 0)
    return shares

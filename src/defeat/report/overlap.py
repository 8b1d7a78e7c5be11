"""Overlaps of boxes exactly as the COCO figures see them."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def xywh(boxes: Tensor) -> Floats:
    """Turn (N, 4) float64 xyxy into xywh, rounded as :mod:`defeat.evaluation.coco` does.

    An overlap that equals a threshold must fall on the same side here and there.
    """
    corner = boxes[:, :2]
    turned = torch.cat([corner, (boxes[:, 2:] - corner).round(decimals=6)], dim=1)
    return cast(Floats, turned.numpy())


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

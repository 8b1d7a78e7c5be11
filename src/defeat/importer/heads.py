"""Rows of classification heads: background first, and anchors in torchvision's order.

Both frameworks have K outputs for K classes, and background last where they have one.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCORES = "roi_heads.box_predictor.cls_score."
BOXES = "roi_heads.box_predictor.bbox_pred."
LOGITS = "head.classification_head.cls_logits."
REGRESSION = "head.regression_head.bbox_reg."

SILENT = -30.0
"""The bias of RetinaNet's background channels, which no framework but torchvision has: a probability below
1e-13, and finite in float16."""


def background_first(tensor: Tensor) -> Tensor:
    """Move background from the end of a softmax head's rows (K + 1, ...) to their beginning."""
    return torch.cat([tensor[-1:], tensor[:-1]])


def with_background_box(tensor: Tensor) -> Tensor:
    """Put four rows of zeros before the (4K, ...) rows of the classes' boxes."""
    return torch.cat([torch.zeros_like(tensor[:4]), tensor])


def ratio_major(tensor: Tensor, scales: int = 3, ratios: int = 3) -> Tensor:
    """Put the rows of anchors from detectron2's order, by scale, into torchvision's, by ratio.

    Args:
        tensor: (scales x ratios x n, ...), anchor by anchor.
        scales: sizes of anchors in a cell.
        ratios: shapes of anchors in a cell.
    """
    rows: Tensor = tensor.unflatten(0, (scales, ratios, -1))
    return rows.transpose(0, 1).flatten(0, 2)


def with_background_logit(tensor: Tensor, anchors: int, *, bias: bool) -> Tensor:
    """Put a silent background channel before the classes of each anchor.

    Args:
        tensor: (A x K, ...), all classes of anchor 0, of anchor 1, ...
        anchors: A.
        bias: whether it is the bias, which silences; the weights are 0.

    Returns:
        (A x (K + 1), ...)
    """
    rows = tensor.unflatten(0, (anchors, -1))  # (A, K, ...)
    silent = torch.full_like(rows[:, :1], SILENT if bias else 0.0)
    return torch.cat([silent, rows], 1).flatten(0, 1)

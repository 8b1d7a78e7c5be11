"""The number of detections that a detector gives an image."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from defeat.detectors.capture import head_of


def allow_detections(detector: nn.Module, number: int) -> None:
    """Let a detector give at least so many detections an image; the weights know nothing of it.

    A Faster R-CNN has no more than its proposals (``rpn_post_nms_top_n_test``, usually 1000), and RetinaNet
    and FCOS no more than ``topk_candidates`` of each level, which are left as they are.

    Raises:
        ConfigError: see :func:`~defeat.detectors.capture.head_of`.
    """
    part = cast(Any, detector.get_submodule("roi_heads") if head_of(detector) == "proposals" else detector)
    part.detections_per_img = max(part.detections_per_img, number)

"""Which detections are right: what a reader is to see in a picture, not a figure to report."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from defeat.types import Prediction, Target


class Matching(NamedTuple):
    """Detections and ground truth of one image, sorted into right and wrong."""

    hit: Tensor
    """(N,) bool: detections with a ground truth of their class."""
    excused: Tensor
    """(N,) bool: detections inside a region to ignore, neither right nor wrong."""
    missed: Tensor
    """(M,) bool: ground truth, not to be ignored, that no detection took."""

    @property
    def false(self) -> Tensor:
        """(N,) bool: the other detections."""
        return ~self.hit & ~self.excused


def above(prediction: Prediction, threshold: float) -> Prediction:
    """The detections whose score is at least ``threshold``, best first."""
    order = torch.argsort(prediction["scores"], descending=True, stable=True)
    order = order[prediction["scores"][order] >= threshold]
    return {
        "boxes": prediction["boxes"][order],
        "scores": prediction["scores"][order],
        "labels": prediction["labels"][order],
    }


def match(prediction: Prediction, target: Target, iou: float = 0.5) -> Matching:
    """Give each detection, best first, the free ground truth of its class that it overlaps most.

    Args:
        prediction: N detections, best first.
        target: M boxes in the same pixels.
        iou: overlap that a hit needs; for regions to ignore, the share of the detection that lies inside.
    """
    same = prediction["labels"][:, None] == target["labels"][None]
    overlap = box_iou(prediction["boxes"], target["boxes"]) * same
    hit = torch.zeros(len(overlap), dtype=torch.bool)
    free = ~target["ignore"]
    for row, overlaps in enumerate(overlap):
        candidates = torch.where(free, overlaps, 0.0)
        if len(candidates) and candidates.max() >= iou:
            hit[row] = True
            free[candidates.argmax()] = False
    return Matching(hit, ~hit & _inside_ignored(prediction, target, same, iou), free)


def _inside_ignored(prediction: Prediction, target: Target, same: Tensor, share: float) -> Tensor:
    regions = target["boxes"][target["ignore"]]
    first, second = prediction["boxes"][:, None], regions[None]
    sides = (
        torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    ).clamp(min=0)
    inside = sides.prod(dim=-1) / box_area(prediction["boxes"]).clamp(min=1e-6)[:, None]
    excused: Tensor = ((inside >= share) & same[:, target["ignore"]]).any(dim=1)
    return excused

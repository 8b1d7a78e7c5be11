"""Which detections are right: what a reader is to see in a picture, not a figure to report."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from defeat.evaluation.matching import coco_overlaps, match_greedily
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
    same_class = (prediction["labels"][:, None] == target["labels"]).numpy()  # (N, M)
    ignore = target["ignore"].numpy()
    matches = match_greedily(
        coco_overlaps(prediction["boxes"], target["boxes"], target["ignore"]) * same_class,
        np.array([iou]),
        crowd=ignore,
        ignored=ignore[None],
        ties="first",
    )
    hit = matches.hit[:, 0, 0]
    missed = ~ignore
    missed[matches.truth[hit]] = False
    return Matching(*map(torch.from_numpy, (hit, matches.ignored[:, 0, 0], missed)))

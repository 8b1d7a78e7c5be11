"""The heads of a detector, run on features that are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from defeat.detectors.capture import Captured
from defeat.types import Target


class Proposals(NamedTuple):
    """Sampled proposals of a batch with their classes."""

    boxes: list[Tensor]
    """One (N_i, 4) xyxy per image, pixels of the resized image."""
    labels: Tensor
    """(sum N_i,) int64: the class of the ground-truth box a proposal is matched to, 0 for background."""


def sample_proposals(detector: nn.Module, neck: Mapping[str, Tensor], seen: Captured) -> Proposals:
    """Run a detector's RPN and its training sampler on its own pyramid (method of the paper, section 3.3).

    Args:
        neck: this detector's pyramid on ``seen.images``.
        seen: the forward that supplies images, sizes and resized targets.
    """
    model = cast(Any, detector)
    boxes, _ = model.rpn(ImageList(seen.images, seen.image_sizes), dict(neck))
    boxes, _, labels, _ = model.roi_heads.select_training_samples(boxes, seen.targets)
    return Proposals(boxes, torch.cat(labels))


def label_proposals(detector: nn.Module, boxes: list[Tensor], targets: list[Target]) -> Proposals:
    """Label given proposals by a detector's own matching rule."""
    _, labels = cast(Any, detector).roi_heads.assign_targets_to_proposals(
        boxes, [t["boxes"] for t in targets], [t["labels"] for t in targets]
    )
    return Proposals(boxes, torch.cat(labels))


def box_head_logits(
    detector: nn.Module,
    neck: Mapping[str, Tensor],
    boxes: list[Tensor],
    image_sizes: list[tuple[int, int]],
) -> Tensor:
    """Class logits (sum N_i, K + 1) of a detector's box head on given proposals."""
    heads = cast(Any, detector).roi_heads
    pooled = heads.box_roi_pool(dict(neck), boxes, image_sizes)
    logits, _ = heads.box_predictor(heads.box_head(pooled))
    return cast(Tensor, logits)


class Assigned(NamedTuple):
    """The part that every anchor of a batch takes in training; those in neither set are left out."""

    positive: Tensor
    """(B, A) bool: overlaps an object enough to find it."""
    negative: Tensor
    """(B, A) bool: background."""
    labels: Tensor
    """(B, A) int64: the class of a positive anchor's object, 0 for all others."""


def assign_anchors(detector: nn.Module, anchors: list[Tensor], targets: list[Target]) -> Assigned:
    """Match the anchors of each image by a RetinaNet's own rule (IoU 0.5 and 0.4 by default).

    Args:
        anchors: one (A, 4) per image, as :class:`Captured` has them.
        targets: boxes in pixels of the resized images.
    """
    model = cast(Any, detector)
    matches, labels = [], []
    for own, target in zip(anchors, targets, strict=True):
        if len(target["boxes"]) == 0:
            below = model.proposal_matcher.BELOW_LOW_THRESHOLD
            matches.append(torch.full((len(own),), below, device=own.device))
            labels.append(torch.zeros_like(matches[-1]))
        else:
            matches.append(model.proposal_matcher(box_iou(target["boxes"], own)))
            labels.append(target["labels"][matches[-1].clamp_min(0)])
    found = torch.stack(matches)  # (B, A)
    positive = found >= 0
    negative = found == model.proposal_matcher.BELOW_LOW_THRESHOLD
    return Assigned(positive, negative, torch.stack(labels) * positive)


def anchor_logits(detector: nn.Module, neck: Mapping[str, Tensor]) -> Tensor:
    """Class logits (B, A, K + 1) of a one-stage detector on a pyramid; column 0 is unused."""
    return cast(Tensor, cast(Any, detector).head.classification_head(list(neck.values())))

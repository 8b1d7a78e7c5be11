"""Faster R-CNN without control flow that depends on data, and without a loop over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from defeat.detectors.adapted import AlignedRoIAlign
from defeat.export.graph.nms import nms_mask
from defeat.export.graph.parts import (
    Detections,
    Features,
    best,
    channels_last,
    clip,
    grid_anchors,
    is_large,
    pick,
    top,
)

LEAST_SIDE = 1e-2
"""Pixels: torchvision's box head drops detections with a shorter side."""


class Proposals(NamedTuple):
    """Proposals of a batch, P for each image."""

    boxes: Tensor
    """(B, P, 4) float32 xyxy in pixels."""
    valid: Tensor
    """(B, P) bool: the others fill up the number."""


class ProposalGraph(nn.Module):
    """The region proposal network of a detector.

    Args:
        rpn: torchvision's; its modules are shared.
    """

    def __init__(self, rpn: Any) -> None:
        super().__init__()
        self.head = rpn.head
        self.anchor_generator = rpn.anchor_generator
        self.anchor_generator.set_cell_anchors(torch.float32, torch.device("cpu"))
        self.box_coder = rpn.box_coder
        self.pre_nms_top_n = rpn._pre_nms_top_n["testing"]
        self.post_nms_top_n = rpn._post_nms_top_n["testing"]
        self.nms_thresh = rpn.nms_thresh
        self.score_thresh = rpn.score_thresh
        self.min_size = rpn.min_size

    def forward(self, images: Tensor, sizes: Tensor, maps: list[Tensor]) -> Proposals:
        """Propose regions on (B, C, h, w) maps of (B, 3, H, W) images."""
        anchors = grid_anchors(self.anchor_generator, images, maps)
        levels = [self._level(*level) for level in zip(maps, anchors, strict=True)]
        codes, cells, logits = (torch.cat(part, dim=1) for part in zip(*levels, strict=True))
        boxes = self.box_coder.decode_single(codes.flatten(0, 1), cells.flatten(0, 1))
        boxes = clip(boxes.reshape(codes.shape), sizes)  # (B, N, 4)
        scores = logits.sigmoid()
        valid = is_large(boxes, self.min_size) & (scores >= self.score_thresh)
        scores = torch.where(valid, scores, -1)
        # Each level is a class of its own.
        numbers = [torch.full_like(logits[0], level) for level, (_, _, logits) in enumerate(levels)]
        own = torch.cat(numbers) == torch.arange(len(levels), device=boxes.device)[:, None]  # (L, N)
        mask = nms_mask(
            boxes, torch.where(own, scores[:, None], -1), self.nms_thresh, -0.5, self.post_nms_top_n
        )
        kept = nn.functional.pad(torch.where(mask.any(1), scores, -1), (0, self.post_nms_top_n), value=-1.0)
        scores, positions = kept.topk(self.post_nms_top_n, dim=1)
        padded = nn.functional.pad(boxes.flatten(1), (0, 4 * self.post_nms_top_n))
        return Proposals(pick(padded, positions), scores >= 0)

    def _level(self, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the best of a level: their codes and anchors (B, k, 4), and their logits (B, k)."""
        (logits,), (deltas,) = self.head([features])
        values, positions = top(channels_last(logits).flatten(1), self.pre_nms_top_n)
        return pick(channels_last(deltas).flatten(1), positions), anchors[positions], values


class FasterRCNNGraph(nn.Module):
    """A Faster R-CNN, from padded images to boxes.

    Args:
        detector: torchvision's Faster R-CNN; its modules are shared.
        nms: False ends the graph before the last suppression, with the boxes of all proposals and classes.
    """

    def __init__(self, detector: Any, *, nms: bool) -> None:
        super().__init__()
        heads = detector.roi_heads
        self.features = Features(detector)
        self.proposals = ProposalGraph(detector.rpn)
        self.pool = heads.box_roi_pool
        self.box_head = heads.box_head
        self.box_predictor = heads.box_predictor
        self.box_coder = heads.box_coder
        self.score_thresh = heads.score_thresh
        self.nms_thresh = heads.nms_thresh
        self.detections = heads.detections_per_img
        self.nms = nms

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects, see :meth:`~defeat.export.graph.one_stage.OneStageGraph.forward`."""
        features = self.features(images, sizes)
        proposals = self.proposals(images, sizes, list(features.values()))
        logits, deltas = self.box_predictor(self.box_head(self._pool(features, proposals)))
        batch, number = proposals.valid.shape
        boxes = self.box_coder.decode_single(deltas, proposals.boxes.flatten(0, 1))  # (B * P, 4 * (K + 1))
        boxes = clip(boxes.reshape(batch, number * logits.shape[1], 4), sizes)
        boxes = boxes.reshape(batch, number, logits.shape[1], 4)
        boxes = boxes[:, :, 1:].transpose(1, 2)  # (B, K, P, 4), without background
        scores = logits.softmax(-1).reshape(batch, number, logits.shape[1])
        scores = scores[..., 1:].transpose(1, 2)  # (B, K, P)
        scores = torch.where(is_large(boxes, LEAST_SIDE) & proposals.valid[:, None], scores, 0)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None].expand_as(scores)
        if self.nms:
            scores = torch.where(self._kept(boxes, scores), scores, 0)
        detections = Detections(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1))
        return best(detections, self.detections) if self.nms else tuple(detections)

    def _kept(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Suppress within each image and class, which have boxes of their own: (B, K, P) bool."""
        mask = nms_mask(
            boxes.flatten(0, 1),
            scores.flatten(0, 1)[:, None],
            self.nms_thresh,
            self.score_thresh,
            self.detections,
        )
        return mask.reshape(scores.shape)

    def _pool(self, features: Mapping[str, Tensor], proposals: Proposals) -> Tensor:
        """Pool each proposal from the level that its size chooses: (B * P, C, h, w)."""
        maps = [features[name] for name in features if name in self.pool.featmap_names]
        boxes, valid = proposals.boxes.flatten(0, 1), proposals.valid.flatten()
        images = torch.arange(proposals.valid.shape[0], device=boxes.device)[:, None]
        images = images.expand_as(proposals.valid).flatten().to(boxes.dtype)
        rois = torch.cat([images[:, None], boxes], dim=1)  # (B * P, 5)
        levels = (
            self.pool.map_levels([boxes]) if len(maps) > 1 else torch.zeros_like(valid, dtype=torch.int64)
        )
        pooled = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], *self.pool.output_size)
        for level, (features_of_level, scale) in enumerate(zip(maps, self.pool.scales, strict=True)):
            (own,) = torch.where(valid & (levels == level))
            regions = roi_align(
                features_of_level,
                rois[own],
                self.pool.output_size,
                scale,
                self.pool.sampling_ratio,
                aligned=isinstance(self.pool, AlignedRoIAlign),
            )
            pooled = pooled.index_put((own,), regions)
        return pooled

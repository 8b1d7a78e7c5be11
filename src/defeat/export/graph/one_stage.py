"""RetinaNet and FCOS without control flow that depends on data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS

from defeat.export.graph.nms import nms_mask
from defeat.export.graph.parts import Detections, Features, best, channels_last, clip, grid_anchors, pick, top


class OneStageGraph(nn.Module):
    """A RetinaNet or FCOS, from padded images to boxes.

    Args:
        detector: torchvision's RetinaNet or FCOS; its modules are shared.
        nms: False ends the graph before the suppression, with all candidates.
    """

    def __init__(self, detector: Any, *, nms: bool) -> None:
        super().__init__()
        self.features = Features(detector)
        self.head = detector.head
        self.anchor_generator = detector.anchor_generator
        self.anchor_generator.set_cell_anchors(torch.float32, torch.device("cpu"))
        self.box_coder = detector.box_coder
        self.candidates = detector.topk_candidates
        self.score_thresh = detector.score_thresh
        self.nms_thresh = detector.nms_thresh
        self.detections = detector.detections_per_img
        self.num_classes = detector.head.classification_head.num_classes
        self.is_fcos = isinstance(detector, FCOS)
        self.nms = nms

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1], resized, then padded to multiples of 32.
            sizes: (B, 2) int64 height and width of each resized image without its padding.

        Returns:
            As :func:`~defeat.export.graph.parts.best`; without ``nms`` all candidates, as
            :class:`~defeat.export.graph.parts.Detections`.
        """
        maps = list(self.features(images, sizes).values())
        anchors = grid_anchors(self.anchor_generator, images, maps)
        levels = [self._level(*level) for level in zip(maps, anchors, strict=True)]
        codes, cells, scores, labels = (torch.cat(part, dim=1) for part in zip(*levels, strict=True))
        candidates = Detections(clip(self._decode(codes, cells), sizes), scores, labels)
        return best(self._suppress(candidates), self.detections) if self.nms else tuple(candidates)

    def _level(self, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find the best of a level: their codes and anchors (B, k, 4), scores and labels (B, k)."""
        scores, codes = self._scores_and_codes(features)
        values, flat = top(scores, self.candidates)
        positions = flat // self.num_classes
        return pick(codes, positions), anchors[positions], values, flat % self.num_classes

    def _scores_and_codes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Run the heads: (B, h * w * A * (K + 1)) scores, and (B, h * w * A * 4) numbers for the boxes."""
        classification, regression = self.head.classification_head, self.head.regression_head
        logits = channels_last(classification.cls_logits(classification.conv(features)))
        shared = regression.conv(features)
        codes = channels_last(regression.bbox_reg(shared))
        if not self.is_fcos:
            return logits.flatten(1).sigmoid(), codes.flatten(1)
        centerness = channels_last(regression.bbox_ctrness(shared))  # (B, h, w, 1)
        return (logits.sigmoid() * centerness.sigmoid()).sqrt().flatten(1), codes.relu().flatten(1)

    def _decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        if self.is_fcos:
            boxes: Tensor = self.box_coder.decode(codes, anchors)
            return boxes
        flat: Tensor = self.box_coder.decode_single(codes.flatten(0, 1), anchors.flatten(0, 1))
        return flat.reshape(codes.shape)

    def _suppress(self, candidates: Detections) -> Detections:
        boxes, scores, labels = candidates
        every = torch.arange(self.num_classes, device=labels.device)[:, None]
        of_class = torch.where(labels[:, None] == every, scores[:, None], 0)  # (B, K + 1, N)
        mask = nms_mask(boxes, of_class, self.nms_thresh, self.score_thresh, self.detections)
        return candidates._replace(scores=torch.where(mask.any(1), scores, 0))

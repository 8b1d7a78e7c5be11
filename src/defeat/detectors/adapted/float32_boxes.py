"""Anchors and boxes in float32, whatever precision the features come in.

torchvision computes them in the dtype of the feature maps. In bfloat16 a coordinate of 1,000 pixels is then a
multiple of 4: anchors, proposals and even the ground truth that proposals are matched to are rounded so.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Float32AnchorGenerator(AnchorGenerator):
    """torchvision's anchors in float32 at least."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Make the anchors of the cell at the origin, from which all others are shifted."""
        super().set_cell_anchors(_wide(dtype), device)


class Float32BoxCoder(BoxCoder):
    """torchvision's coder of two-stage detectors and RetinaNet, decoding in float32 at least."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes from offsets, see torchvision."""
        return cast(Tensor, super().decode_single(rel_codes.to(_wide(rel_codes.dtype)), boxes))


class Float32BoxLinearCoder(BoxLinearCoder):
    """torchvision's coder of FCOS, decoding in float32 at least."""

    def decode(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes from distances, see torchvision."""
        return cast(Tensor, super().decode(rel_codes.to(_wide(rel_codes.dtype)), boxes))


_EXACT = {
    AnchorGenerator: Float32AnchorGenerator,
    BoxCoder: Float32BoxCoder,
    BoxLinearCoder: Float32BoxLinearCoder,
}


def keep_boxes_exact(detector: nn.Module) -> None:
    """Let a detector built by torchvision compute its boxes in float32, in place; float32 runs stay the same.

    Classes of torchvision's own alone: what somebody has put there in their place is left.
    """
    for module in detector.modules():
        for part in (module, getattr(module, "box_coder", None)):
            if type(part) in _EXACT:
                # The object stays, with all that refers to it; only its arithmetic is another.
                cast(Any, part).__class__ = _EXACT[type(part)]

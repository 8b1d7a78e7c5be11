"""Anchors and boxes in float32, whatever precision the features come in.

torchvision computes them in the dtype of the feature maps. In bfloat16 a coordinate of 1,000 pixels is then a
multiple of 4: anchors, proposals and the ground truth that proposals are matched to are rounded to it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Float32AnchorGenerator(AnchorGenerator):
    """torchvision's anchors, in float32 or float64."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Make the anchors of the cell at the origin, from which all others are shifted."""
        super().set_cell_anchors(_at_least_float32(dtype), device)


class Float32BoxCoder(BoxCoder):
    """torchvision's box coder of two-stage detectors, RetinaNet and SSD, decoding in float32 or float64."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes that offsets from anchors or proposals mean, see torchvision."""
        return cast(Tensor, super().decode_single(rel_codes.to(_at_least_float32(rel_codes.dtype)), boxes))


class Float32BoxLinearCoder(BoxLinearCoder):
    """torchvision's box coder of FCOS, decoding in float32 or float64."""

    def decode(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes that distances from points mean, see torchvision."""
        return cast(Tensor, super().decode(rel_codes.to(_at_least_float32(rel_codes.dtype)), boxes))

"""Anchors and boxes in float32, whatever precision the features come in.

torchvision computes them in the dtype of the feature maps. In bfloat16 a coordinate of 1,000 pixels is then a
multiple of 4: anchors, proposals and the ground truth that proposals are matched to are rounded to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Float32AnchorGenerator(AnchorGenerator):
    """torchvision's anchors, in float32 or float64.

    Args:
        sizes: side in pixels of each level's anchors, the square root of their area.
        aspect_ratios: height / width, for each level.
        rounded: False keeps the corners of the anchors as they are; torchvision rounds them to whole pixels.
        strides: pixels from one cell to the next, for each level. None divides the size of the padded batch
            by that of the map and rounds down, as torchvision does. That is the stride only where the batch
            is a multiple of it: on the level of stride 64, 800 pixels have 13 cells, 61 pixels apart.
    """

    def __init__(
        self,
        sizes: tuple[tuple[float, ...], ...],
        aspect_ratios: tuple[tuple[float, ...], ...],
        *,
        rounded: bool = True,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__(sizes, aspect_ratios)
        if not rounded:
            self.cell_anchors = [_exact_cell(*level) for level in zip(sizes, aspect_ratios, strict=True)]
        self.strides = None if strides is None else tuple(strides)

    def grid_anchors(self, grid_sizes: list[Any], strides: list[Any]) -> list[Tensor]:
        """Lay the anchors of the cell at the origin over every level's grid, see torchvision."""
        if self.strides is not None:
            strides = [(stride, stride) for stride in self.strides]
        return cast(list[Tensor], super().grid_anchors(grid_sizes, strides))

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Make the anchors of the cell at the origin, from which all others are shifted."""
        super().set_cell_anchors(_at_least_float32(dtype), device)


def _exact_cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Return the anchors (A, 4) of the cell at the origin, ratio by ratio as torchvision orders them."""
    corners = [(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for ratio in ratios for size in sizes]
    return torch.tensor([(-x, -y, x, y) for x, y in corners], dtype=torch.float32, device="cpu")


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

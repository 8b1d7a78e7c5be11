"""Imitation of whole feature maps, without a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from defeat.detectors.capture import DetectorSpec
from defeat.distill.adapters import matching
from defeat.distill.terms import AdaptedMaps, DistillBatch, LossDict, Maps
from defeat.errors import ConfigError

MapLoss = Callable[[Tensor, Tensor], Tensor]
"""Adapted student map and teacher map of a level, (B, C, H, W) each, to a scalar."""


class WholeMapTerm(nn.Module):
    """Imitation of every cell alike by any loss of two maps, averaged over the levels both detectors have.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        maps: ``neck`` for the pyramid, ``stages`` for the backbone.
        weight: of the mean over levels.
        loss: compares the maps of one level.
        adapter: builds the layer from student to teacher channels of one level.
        strides: use only these levels; None means all that both have.

    Raises:
        ConfigError: see :class:`AdaptedMaps`; a weight that is not positive.
    """

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        *,
        maps: Maps = "neck",
        weight: float,
        loss: MapLoss,
        adapter: Callable[[int, int], nn.Module] = matching,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if weight <= 0:
            raise ConfigError(f"weight={weight} must be positive: leave the term out instead")
        self.maps: Maps = maps
        self.weight = weight
        self.loss = loss
        self.adapters = AdaptedMaps(student, teacher, maps, adapter, strides)

    def forward(self, batch: DistillBatch) -> LossDict:
        """Weighted loss of one batch, (L,)."""
        losses = [self.loss(ours, theirs) for ours, theirs in self.adapters(batch)]
        return {"": self.weight * torch.stack(losses) / len(losses)}

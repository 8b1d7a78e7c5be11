"""Imitation of whole feature maps, without a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from defeat.detectors.capture import DetectorSpec
from defeat.distill.adapters import matching
from defeat.distill.terms.adapted_maps import AdaptedMaps
from defeat.distill.terms.base import ComparedMaps, DistillBatch, LossDict, Maps, Term

MapLoss = Callable[[Tensor, Tensor], Tensor]
"""Adapted student map and teacher map of a level, (B, C, H, W) each, to a scalar."""


class WholeMapTerm(Term):
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

    weight_keys: ClassVar[Mapping[str, str]] = {"": "weight"}

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
        adapters = AdaptedMaps(student, teacher, maps, adapter, strides)
        super().__init__({"": weight}, maps=maps, levels=adapters.levels)
        self.loss = loss
        self.adapters = adapters

    def forward(self, batch: DistillBatch) -> LossDict:
        """Compute the weighted loss of one batch, (L,)."""
        losses = [self.loss(student, teacher) for student, teacher in self.adapters(batch)]  # L scalars
        return {"": self.weights[""] * torch.stack(losses) / len(losses)}

    def compared_maps(self, batch: DistillBatch) -> list[ComparedMaps]:
        """Return the maps of each level."""
        strides = [level.student.stride for level in self.levels]
        pairs = zip(strides, self.adapters(batch), strict=True)
        return [ComparedMaps(stride, student, teacher, None) for stride, (student, teacher) in pairs]

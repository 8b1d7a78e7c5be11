"""DeFeat's imitation of masked feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from defeat.detectors.capture import DetectorSpec
from defeat.distill.adapters import conv3x3
from defeat.distill.grids import Grids
from defeat.distill.losses import decoupled_feature_sums
from defeat.distill.masks import Mask, object_mask
from defeat.distill.terms.adapted_maps import AdaptedMaps
from defeat.distill.terms.base import OBJECT_AND_BACKGROUND, ComparedMaps, DistillBatch, LossDict, Maps, Term


class FeatureTerm(Term):
    """Feature imitation on masked maps (Eq. 4-5), averaged over the levels both detectors have.

    Args:
        student: what the student offers.
        teacher: what the teacher offers.
        maps: ``neck`` for the pyramid, ``stages`` for the backbone.
        object_weight: alpha_obj, in the units of :func:`~defeat.distill.losses.decoupled_feature_loss`.
        background_weight: alpha_bg.
        mask: draws the object regions from the ground truth.
        adapter: builds the layer from student to teacher channels of one level.
        strides: use only these levels; None means all that both have.

    Raises:
        ConfigError: see :class:`AdaptedMaps`; a negative weight, or both 0.
    """

    weight_keys = OBJECT_AND_BACKGROUND

    def __init__(
        self,
        student: DetectorSpec,
        teacher: DetectorSpec,
        *,
        maps: Maps = "neck",
        object_weight: float,
        background_weight: float,
        mask: Mask = object_mask,
        adapter: Callable[[int, int], nn.Module] = conv3x3,
        strides: Sequence[int] | None = None,
    ) -> None:
        adapters = AdaptedMaps(student, teacher, maps, adapter, strides)
        weights = {"object": object_weight, "background": background_weight}
        super().__init__(weights, maps=maps, levels=adapters.levels)
        self.mask = mask
        self.min_object_cells = student.min_object_cells
        self.adapters = adapters
        for level in adapters.levels:
            # A buffer travels to the device once. Not a number of the checkpoint: the detector has it.
            anchors = torch.tensor(level.student.anchors, dtype=torch.float32).reshape(-1, 4)
            self.register_buffer(f"anchors_{level.student.stride}", anchors, persistent=False)

    def forward(self, batch: DistillBatch) -> LossDict:
        """Compute the weighted object and background losses of one batch, (L,) each."""
        masks = self.mask(self.grids(batch))  # L of (B, H, W)
        levels = [
            decoupled_feature_sums(student, teacher, mask)
            for (student, teacher), mask in zip(self.adapters(batch), masks, strict=True)
        ]
        sums, counts = zip(*levels, strict=True)  # L pairs of scalars, L of (2,)
        divisors = batch.normalizer(torch.stack(counts, dim=1))  # (2, L)
        object_sums, background_sums = (torch.stack(half) for half in zip(*sums, strict=True))  # (L,) each
        return self.weighted(
            {
                "object": object_sums / divisors[0] / len(levels),
                "background": background_sums / divisors[1] / len(levels),
            }
        )

    def compared_maps(self, batch: DistillBatch) -> list[ComparedMaps]:
        """Return the maps of each level and the mask that divides them."""
        strides = [level.student.stride for level in self.levels]
        masks = self.mask(self.grids(batch))
        return [
            ComparedMaps(stride, student, teacher, mask)
            for stride, (student, teacher), mask in zip(strides, self.adapters(batch), masks, strict=True)
        ]

    def grids(self, batch: DistillBatch) -> Grids:
        """Return what the mask is drawn on for one batch."""
        strides = [level.student.stride for level in self.levels]
        anchors = [self.get_buffer(f"anchors_{stride}") for stride in strides]
        return Grids(
            boxes=[target["boxes"] for target in batch.student_captures.targets],
            shapes=[(x.shape[-2], x.shape[-1]) for x in self.adapters.student_maps(batch)],
            strides=strides,
            min_object_cells=self.min_object_cells,
            anchors=anchors if all(map(len, anchors)) else (),
        )

"""The levels P6 and P7 of RetinaNet as mmdetection has them."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7


class LinearP6P7(LastLevelP6P7):
    """torchvision's P6 and P7 without the ReLU between them (``relu_before_extra_convs=False``)."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Add two levels to those of the pyramid, see torchvision.

        Args:
            p: maps (B, C, H, W) of the pyramid, finest first.
            c: maps of the backbone's stages that it is built on, likewise.
            names: of the pyramid's maps.
        """
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]

"""Resizing that leaves at least a pixel of every image.

torchvision shrinks an image until its longer side fits into ``max_size``. Of an image that is ``max_size``
times as long as it is high nothing is left, and the resizing fails.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class PixelTransform(GeneralizedRCNNTransform):
    """torchvision's transform, which stretches very long or high images before it shrinks them."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize a (3, H, W) image and its boxes, see torchvision."""
        height, width = image.shape[-2:]
        least = max(height, width) // self.max_size + 1  # pixels, of which at least one is left
        if self.fixed_size is None and min(height, width) * self.max_size <= max(height, width):
            size = max(height, least), max(width, least)
            image = interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
            if target is not None:
                target["boxes"] = resize_boxes(target["boxes"], [height, width], list(size))
        resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return resized

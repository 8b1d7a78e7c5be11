"""RoIAlign as detectron2 and mmdetection have it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.ops._utils import convert_boxes_to_roi_format

from defeat.detectors.adapted.parallel_roi_align import ParallelRoIAlign, Sizes


class AlignedRoIAlign(ParallelRoIAlign):
    """Pooling of regions whose samples lie where the pixels are, from as many samples as a cell has pixels.

    torchvision's detectors pool half a pixel of the map further to the right and below, and enlarge regions
    that are smaller than such a pixel to one. detectron2 (``ROIAlignV2``) and mmdetection pool as is done
    here: ``aligned=True``. Their number of samples follows from the size of the region: give a
    ``sampling_ratio`` of 0.
    """

    def pool(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        """Pool in one thread; see :meth:`ParallelRoIAlign.forward`."""
        maps = [level for name, level in x.items() if name in self.featmap_names]
        rois = convert_boxes_to_roi_format(boxes)  # (N, 5)
        levels = self.map_levels(boxes)  # (N,)
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)  # (N, C, h, w)
        for level, (features, scale) in enumerate(zip(maps, self.scales, strict=True)):
            (own,) = torch.where(levels == level)
            regions = roi_align(
                features, rois[own], self.output_size, scale, self.sampling_ratio, aligned=True
            )
            pooled[own] = regions.to(pooled.dtype)
        return pooled

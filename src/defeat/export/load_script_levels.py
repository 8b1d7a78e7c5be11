"""The levels of a student in its ``load_student.py``: the extra ones, the anchors, the pooling.

Where a student computes otherwise than torchvision, the file defines classes that repeat those of
:mod:`defeat.detectors.adapted`, without their speed.
"""

from __future__ import annotations

from typing import Any

from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from defeat.detectors.adapted import AlignedRoIAlign, LinearP6P7
from defeat.export.load_script_code import Code, joined

_FIXED_STRIDES = '''

class FixedStrides(AnchorGenerator):
    """Anchors at the strides of the levels; torchvision derives strides from the size of the batch."""

    strides = {strides}

    def grid_anchors(self, grid_sizes, strides):
        return super().grid_anchors(grid_sizes, [(stride, stride) for stride in self.strides])
'''

_ALIGNED_ROI_ALIGN = '''

class AlignedRoIAlign(MultiScaleRoIAlign):
    """Pooling as in detectron2 and mmdetection: torchvision's samples half a pixel of the map beside it."""

    def forward(self, x, boxes, image_shapes):
        maps = [level for name, level in x.items() if name in self.featmap_names]
        rois, levels = convert_boxes_to_roi_format(boxes), self.map_levels(boxes)
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, (features, scale) in enumerate(zip(maps, self.scales)):
            (own,) = torch.where(levels == level)
            regions = roi_align(
                features, rois[own], self.output_size, scale, self.sampling_ratio, aligned=True
            )
            pooled[own] = regions.to(pooled.dtype)
        return pooled
'''

_LINEAR_P6P7 = '''

class LinearP6P7(LastLevelP6P7):
    """P6 and P7 as in mmdetection; torchvision has a ReLU between them."""

    def forward(self, p, c, names):
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]
'''


def topmost(block: Any) -> Code:
    """Write the block that makes the levels above the backbone's, in ``topmost``."""
    module = "from torchvision.ops.feature_pyramid_network import"
    if isinstance(block, LastLevelMaxPool):
        return Code({f"{module} LastLevelMaxPool"}, ["topmost = LastLevelMaxPool()"])
    linear = isinstance(block, LinearP6P7)
    lines = [f"topmost = {type(block).__name__}({block.p6.in_channels}, {block.p6.out_channels})"]
    if not block.use_P5:
        lines.append("topmost.use_P5 = False")
    return Code({f"{module} LastLevelP6P7"}, lines, _LINEAR_P6P7 if linear else "")


def anchors(generator: Any, *, rounded: bool) -> Code:
    """Write the anchor generator, in ``anchors``; torchvision's own rounds its cells."""
    fixed, ratios = generator.strides is not None, generator.aspect_ratios
    name = "FixedStrides" if fixed else "AnchorGenerator"
    lines = [f"anchors = {name}({generator.sizes!r}, ({ratios[0]!r},) * {len(ratios)})"]
    if not rounded:
        cells = "".join(f"    torch.tensor({cell.tolist()}),\n" for cell in generator.cell_anchors)
        lines.append(f"anchors.cell_anchors = [\n{cells}]")
    imports = {"from torchvision.models.detection.anchor_utils import AnchorGenerator"}
    return Code(imports, lines, _FIXED_STRIDES.format(strides=generator.strides) if fixed else "")


def pooling(pool: Any) -> Code:
    """Write a pooling with its scales, in ``pool``."""
    imports, aligned = {"from torchvision.ops import MultiScaleRoIAlign"}, isinstance(pool, AlignedRoIAlign)
    if aligned:
        imports.add("from torchvision.ops import roi_align")
        imports.add("from torchvision.ops._utils import convert_boxes_to_roi_format")
    name = "AlignedRoIAlign" if aligned else "MultiScaleRoIAlign"
    made = f"pool = {name}({pool.featmap_names!r}, {pool.output_size[0]}, {pool.sampling_ratio})"
    code = Code(imports, [made], _ALIGNED_ROI_ALIGN if aligned else "")
    return joined([code, scales(pool)])


def scales(pool: Any) -> Code:
    """Give ``pool`` its scales, which torchvision infers from the first image otherwise, at times wrongly."""
    levels = pool.map_levels
    lines = [
        f"pool.scales = {list(pool.scales)}",
        f"pool.map_levels = LevelMapper({levels.k_min}, {levels.k_max}, {levels.s0}, {levels.lvl0})",
    ]
    return Code({"from torchvision.ops.poolers import LevelMapper"}, lines)

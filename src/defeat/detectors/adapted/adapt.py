"""Put the adapted modules into a detector in place of torchvision's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from defeat.detectors.adapted.float32_boxes import (
    Float32AnchorGenerator,
    Float32BoxCoder,
    Float32BoxLinearCoder,
)
from defeat.detectors.adapted.frozen_batch_norm import HalfFrozenBatchNorm2d
from defeat.detectors.adapted.parallel_roi_align import ParallelRoIAlign


def adapt(detector: nn.Module) -> None:
    """Replace torchvision's own modules in a detector by the adapted ones, in place.

    Tensors and settings stay the same objects. A module of any other class, a subclass of torchvision's too,
    is left: somebody has put it there on purpose.
    """
    for parent in list(detector.modules()):
        for name, child in list(parent.named_children()):
            replacement = _REPLACEMENTS.get(type(child))
            if replacement is not None:
                setattr(parent, name, replacement(child))
    adapt_box_coders(detector)


def adapt_box_coders(detector: nn.Module) -> None:
    """Replace torchvision's own box coders, which no detector takes as an argument, in place."""
    for parent in detector.modules():
        coder: Any = getattr(parent, "box_coder", None)
        if type(coder) is BoxCoder:
            parent.box_coder = Float32BoxCoder(coder.weights, coder.bbox_xform_clip)
        elif type(coder) is BoxLinearCoder:
            parent.box_coder = Float32BoxLinearCoder(coder.normalize_by_size)


def _frozen_batch_norm(norm: FrozenBatchNorm2d) -> HalfFrozenBatchNorm2d:
    adapted = HalfFrozenBatchNorm2d(len(norm.weight), norm.eps)
    for name, buffer in norm.named_buffers():
        setattr(adapted, name, buffer)
    adapted.training = norm.training
    return adapted


def _anchor_generator(generator: AnchorGenerator) -> Float32AnchorGenerator:
    adapted = Float32AnchorGenerator(generator.sizes, generator.aspect_ratios)
    adapted.cell_anchors = generator.cell_anchors
    adapted.training = generator.training
    return adapted


def _roi_align(pool: MultiScaleRoIAlign) -> ParallelRoIAlign:
    adapted = ParallelRoIAlign(
        pool.featmap_names,
        pool.output_size,
        pool.sampling_ratio,
        canonical_scale=pool.canonical_scale,
        canonical_level=pool.canonical_level,
    )
    adapted.training = pool.training
    return adapted


_REPLACEMENTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    FrozenBatchNorm2d: _frozen_batch_norm,
    AnchorGenerator: _anchor_generator,
    MultiScaleRoIAlign: _roi_align,
}

"""Put the adapted modules into a detector in place of torchvision's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from defeat.detectors.adapted.float32_boxes import (
    Float32AnchorGenerator,
    Float32BoxCoder,
    Float32BoxLinearCoder,
)
from defeat.detectors.adapted.frozen_batch_norm import HalfFrozenBatchNorm2d
from defeat.detectors.adapted.parallel_roi_align import ParallelRoIAlign, set_strides
from defeat.detectors.adapted.pixel_transform import PixelTransform
from defeat.detectors.capture import capture_blank_image
from defeat.io.text import one_line

log = logging.getLogger(__name__)


def adapt(detector: nn.Module) -> None:
    """Replace torchvision's own modules in a detector by the adapted ones, in place.

    Tensors and settings stay the same objects. A module of any other class, a subclass of torchvision's too,
    is left: somebody has put it there on purpose. Only the scales of a RoIAlign are set in any class.
    """
    _set_scales(detector)
    for parent in list(detector.modules()):
        for name, child in list(parent.named_children()):
            replacement = _REPLACEMENTS.get(type(child))
            if replacement is not None:
                setattr(parent, name, replacement(child))
    adapt_inner_parts(detector)


def adapt_inner_parts(detector: nn.Module) -> None:
    """Replace torchvision's own box coders and transform, which detectors make themselves, in place."""
    for parent in list(detector.modules()):
        transform: Any = getattr(parent, "transform", None)
        if type(transform) is GeneralizedRCNNTransform:
            parent.transform = _transform(transform)
        coder: Any = getattr(parent, "box_coder", None)
        if type(coder) is BoxCoder:
            parent.box_coder = Float32BoxCoder(coder.weights, coder.bbox_xform_clip)
        elif type(coder) is BoxLinearCoder:
            parent.box_coder = Float32BoxLinearCoder(coder.normalize_by_size)


def _set_scales(detector: nn.Module) -> None:
    """Give torchvision's own RoIAligns the strides of the maps that they pool from, measured once."""
    for rcnn in (module for module in detector.modules() if isinstance(module, GeneralizedRCNN)):
        pools = [pool for pool in rcnn.modules() if isinstance(pool, MultiScaleRoIAlign)]
        if all(isinstance(pool, ParallelRoIAlign) for pool in pools):  # of a builder of this project
            continue
        try:
            captured = capture_blank_image(rcnn)
        except Exception as error:  # whatever a backbone of somebody else's does with an image of this size
            log.warning(
                "%s cannot compute a blank image (%s): its RoIAlign keeps the scales that torchvision infers "
                "from the first batch, which are wrong where that holds very long or very high images",
                type(rcnn).__name__,
                one_line(str(error), 160),
            )
            continue
        side = captured.images.shape[-1]
        for pool in pools:
            strides = [side // x.shape[-1] for name, x in captured.neck.items() if name in pool.featmap_names]
            if strides:
                set_strides(pool, strides)


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


def _transform(transform: GeneralizedRCNNTransform) -> PixelTransform:
    adapted = PixelTransform(
        transform.min_size,
        transform.max_size,
        transform.image_mean,
        transform.image_std,
        transform.size_divisible,
        transform.fixed_size,
        _skip_resize=transform._skip_resize,
    )
    adapted.training = transform.training
    return adapted


def _roi_align(pool: MultiScaleRoIAlign) -> MultiScaleRoIAlign:
    if pool.scales is None:  # its strides are not known
        return pool
    adapted = ParallelRoIAlign(
        pool.featmap_names,
        pool.output_size,
        pool.sampling_ratio,
        strides=[round(1 / scale) for scale in pool.scales],
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

"""Builders of the detectors that the configurations name; ``loading.py`` fills them with weights.

Parameter names are torchvision's, so that its weights load into ``backbone="resnet50"``. All builders take
these arguments, beside torchvision's settings for sampling and filtering under its names:

    num_classes: classes with background, as torchvision counts them.
    backbone: see :data:`defeat.detectors.backbones.NAMES`.
    fpn_channels: channels of every pyramid level and of the heads on it.
    returned_layers: backbone stages under the pyramid, 1..4; further levels are added on top.
    trainable_layers: of the 5 backbone parts, counted from the deepest.
    norm: ``frozen``, ``batch`` or ``sync``.
    stride_in_1x1: see :func:`defeat.detectors.backbones.fpn_backbone`.
    strides: pixels from one anchor or point to the next. ``derived`` divides the size of the padded batch by
        that of the map, as torchvision does; ``fixed`` is the stride of the level, as in detectron2 and
        mmdetection. They differ where the batch is no multiple of the stride, and the anchors of the topmost
        levels are then up to 84 pixels apart at 800 x 1088.
    min_size: length of the shorter image side in pixels; several values are drawn from in training and the
        last one is used in evaluation; None means 800.
    max_size: bound on the longer side in pixels; None means 1333.
    size_divisible: in pixels, a multiple of 32. A batch is padded to the next multiple of its longest sides,
        so larger ones make fewer shapes, and every padded pixel costs as much as another: with 448 the 300
        shapes of batches of 800 x 800 to 800 x 1333 become 4, at 1.4 times the pixels of 800 x 1066.

Those with anchors:

    anchors: ``rounded`` to whole pixels, as torchvision's; or ``float``, as those of detectron2 and
        mmdetection, and RetinaNet's sizes of octaves likewise.

Those with the levels P6 and P7:

    extra_levels_from: ``p5``, the topmost map of the pyramid, or ``c5``, the deepest stage under it.
    relu_before_p7: whether P7 is made of the positive part of P6; false in mmdetection.

They raise :class:`~defeat.errors.ConfigError` for what :func:`~defeat.detectors.backbones.fpn_backbone`
refuses, an unknown choice, a list of anchor sizes whose length is not the number of levels, and a
``size_divisible`` that is no multiple of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from defeat.detectors.adapted import adapt_inner_parts
from defeat.detectors.backbones import Norm, fpn_backbone
from defeat.detectors.levels import (
    Anchors,
    ExtraLevels,
    RoIAlign,
    Sizes,
    Strides,
    anchor_generator,
    check_scales,
    extra_levels,
    octave_sizes,
    roi_pool,
    strides_of_levels,
)
from defeat.detectors.rcnn_heads import Heads, rcnn_heads
from defeat.errors import ConfigError

GROUPS = 32
"""Groups of the GroupNorm layers in torchvision's FCOS head."""


def faster_rcnn(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    fpn_channels: int = 256,
    returned_layers: Sequence[int] = (1, 2, 3, 4),
    trainable_layers: int = 3,
    norm: Norm = "frozen",
    stride_in_1x1: bool = False,
    min_size: int | Sequence[int] | None = 800,
    max_size: int | None = 1333,
    size_divisible: int = 32,
    anchor_sizes: Sizes | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    anchors: Anchors = "rounded",
    strides: Strides = "derived",
    roi_align: RoIAlign = "torchvision",
    heads: Heads = "v1",
    rpn_pre_nms_top_n_train: int = 2000,
    rpn_pre_nms_top_n_test: int = 1000,
    rpn_post_nms_top_n_train: int = 2000,
    rpn_post_nms_top_n_test: int = 1000,
    rpn_batch_size_per_image: int = 256,
    box_head_channels: int = 1024,
    box_batch_size_per_image: int = 512,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
) -> FasterRCNN:
    """Build Faster R-CNN with FPN (Ren et al. 2015; Lin et al. 2017), levels of stride 4..64 by default.

    Args:
        anchor_sizes: pixels, one list per level; None means 8 x stride, one anchor size a level.
        aspect_ratios: height / width of the anchors.
        roi_align: ``torchvision``: two samples a cell and direction, half a pixel of the map beside those of
            other frameworks; or ``aligned``, see :class:`~defeat.detectors.adapted.AlignedRoIAlign`.
        heads: ``v1``: one convolution in the RPN, two fully connected layers in the box head. ``v2``, as
            torchvision's ``fasterrcnn_resnet50_fpn_v2`` and detectron2's newer baselines: two convolutions
            in the RPN, four and a fully connected layer in the box head, ``norm`` there and in the pyramid.
        box_head_channels: width of the fully connected layers of the box head.

    The other arguments, and the errors that are raised, are those of all builders, see above.
    """
    topmost = LastLevelMaxPool()
    body = fpn_backbone(
        backbone,
        fpn_channels,
        returned_layers,
        trainable_layers,
        norm,
        stride_in_1x1,
        lambda deepest: topmost,
        pyramid_norm=heads == "v2",
    )
    level_strides = strides_of_levels(returned_layers, extra=1)
    sizes = anchor_sizes or [(8 * stride,) for stride in level_strides]
    generator = anchor_generator(sizes, aspect_ratios, level_strides, anchors, strides)
    (anchors_of_cell, *_) = generator.num_anchors_per_location()
    detector = FasterRCNN(
        body,
        **_transform(min_size, max_size, size_divisible),
        **rcnn_heads(heads, norm, fpn_channels, box_head_channels, anchors_of_cell),
        rpn_anchor_generator=generator,
        rpn_pre_nms_top_n_train=rpn_pre_nms_top_n_train,
        rpn_pre_nms_top_n_test=rpn_pre_nms_top_n_test,
        rpn_post_nms_top_n_train=rpn_post_nms_top_n_train,
        rpn_post_nms_top_n_test=rpn_post_nms_top_n_test,
        rpn_batch_size_per_image=rpn_batch_size_per_image,
        box_roi_pool=roi_pool(level_strides[:-1], roi_align),
        box_predictor=FastRCNNPredictor(box_head_channels, num_classes),
        box_batch_size_per_image=box_batch_size_per_image,
        box_score_thresh=box_score_thresh,
        box_nms_thresh=box_nms_thresh,
        box_detections_per_img=box_detections_per_img,
    )
    adapt_inner_parts(detector)
    return detector


def retinanet(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    fpn_channels: int = 256,
    returned_layers: Sequence[int] = (2, 3, 4),
    trainable_layers: int = 3,
    norm: Norm = "frozen",
    stride_in_1x1: bool = False,
    min_size: int | Sequence[int] | None = 800,
    max_size: int | None = 1333,
    size_divisible: int = 32,
    anchor_sizes: Sizes | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    anchors: Anchors = "rounded",
    strides: Strides = "derived",
    extra_levels_from: ExtraLevels = "p5",
    relu_before_p7: bool = True,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    detections_per_img: int = 100,
    topk_candidates: int = 1000,
) -> RetinaNet:
    """Build RetinaNet (Lin et al. 2017), levels of stride 8..128 by default.

    Args:
        anchor_sizes: pixels, one list per level; None means 4 x stride in three steps of a third octave.
        detections_per_img: 100 is what COCO counts; torchvision's own default is 300.

    The other arguments, and the errors that are raised, are those of all builders, see above.
    """
    topmost = extra_levels(fpn_channels, extra_levels_from, relu_before_p7)
    body = fpn_backbone(
        backbone, fpn_channels, returned_layers, trainable_layers, norm, stride_in_1x1, topmost
    )
    level_strides = strides_of_levels(returned_layers, extra=2)
    sizes = anchor_sizes or octave_sizes(level_strides, anchors)
    detector = RetinaNet(
        body,
        num_classes,
        **_transform(min_size, max_size, size_divisible),
        anchor_generator=anchor_generator(sizes, aspect_ratios, level_strides, anchors, strides),
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_img=detections_per_img,
        topk_candidates=topk_candidates,
    )
    adapt_inner_parts(detector)
    return detector


def fcos(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    fpn_channels: int = 256,
    returned_layers: Sequence[int] = (2, 3, 4),
    trainable_layers: int = 3,
    norm: Norm = "frozen",
    stride_in_1x1: bool = False,
    min_size: int | Sequence[int] | None = 800,
    max_size: int | None = 1333,
    size_divisible: int = 32,
    anchor_sizes: Sizes | None = None,
    strides: Strides = "derived",
    extra_levels_from: ExtraLevels = "p5",
    relu_before_p7: bool = True,
    center_sampling_radius: float = 1.5,
    score_thresh: float = 0.2,
    nms_thresh: float = 0.6,
    detections_per_img: int = 100,
    topk_candidates: int = 1000,
) -> FCOS:
    """Build FCOS (Tian et al. 2019), levels of stride 8..128 by default.

    It has no anchors: every cell predicts the distances to the four sides of a box, and torchvision keeps
    each level's unit of length as one square a cell.

    Args:
        num_classes: classes with background, as torchvision counts them. FCOS has an output for background
            too, which learns to stay silent; until it has, detections may carry label 0.
        fpn_channels: a multiple of 32 from 64 on, for the 32 groups of the head's GroupNorm.
        anchor_sizes: side of each level's square in pixels, one list of one size per level; None means the
            stride. A level takes the boxes whose farthest side is 4 to 8 of them from the cell's centre
            (the first level also nearer ones, the last also farther ones).
        center_sampling_radius: how far from a box's centre its cells may lie, in those sizes.
        score_thresh: on the square root of class score x centre-ness, hence higher than others'.

    The other arguments are those of all builders, see above.

    Raises:
        ConfigError: as all builders; or channels that do not divide into groups, more than one size on
            a level, or sizes that leave a gap between levels.
    """
    _check_groups(fpn_channels)
    topmost = extra_levels(fpn_channels, extra_levels_from, relu_before_p7)
    body = fpn_backbone(
        backbone, fpn_channels, returned_layers, trainable_layers, norm, stride_in_1x1, topmost
    )
    level_strides = strides_of_levels(returned_layers, extra=2)
    sizes = anchor_sizes or [(stride,) for stride in level_strides]
    points = anchor_generator(sizes, (1.0,), level_strides, "rounded", strides)
    check_scales(sizes)
    detector = FCOS(
        body,
        num_classes,
        **_transform(min_size, max_size, size_divisible),
        anchor_generator=points,
        center_sampling_radius=center_sampling_radius,
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_img=detections_per_img,
        topk_candidates=topk_candidates,
    )
    adapt_inner_parts(detector)
    return detector


def _check_groups(fpn_channels: int) -> None:
    """A group of one channel has nothing to normalise on a level of one cell: torch refuses it there."""
    if fpn_channels % GROUPS or fpn_channels < 2 * GROUPS:
        raise ConfigError(
            f"fpn_channels={fpn_channels}: FCOS normalises its head in {GROUPS} groups of several channels, "
            f"give a multiple of {GROUPS} from {2 * GROUPS} on"
        )


def _transform(
    min_size: int | Sequence[int] | None, max_size: int | None, size_divisible: int
) -> dict[str, Any]:
    """Settings of torchvision's transform."""
    # Levels whose cells would cover no whole number of pixels have their anchors beside the features.
    if size_divisible < 32 or size_divisible % 32:
        raise ConfigError(
            f"size_divisible={size_divisible}: give a multiple of 32, the stride of the deepest stage"
        )
    min_size = 800 if min_size is None else min_size
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    return {
        "min_size": sizes,
        "max_size": 1333 if max_size is None else max_size,
        "size_divisible": size_divisible,
    }

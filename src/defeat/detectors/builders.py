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
    min_size: length of the shorter image side in pixels; several values are drawn from in training and the
        last one is used in evaluation; None means 800.
    max_size: bound on the longer side in pixels; None means 1333.
    size_divisible: in pixels, a multiple of 32. A batch is padded to the next multiple of its longest sides,
        so larger ones make fewer shapes, and every padded pixel costs as much as another: with 448 the 300
        shapes of batches of 800 x 800 to 800 x 1333 become 4, at 1.4 times the pixels of 800 x 1066.

They raise :class:`~defeat.errors.ConfigError` for what :func:`~defeat.detectors.backbones.fpn_backbone`
refuses, a list of anchor sizes whose length is not the number of levels, and a ``size_divisible`` that is no
multiple of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from defeat.detectors.adapted import Float32AnchorGenerator, ParallelRoIAlign, adapt_inner_parts
from defeat.detectors.backbones import Norm, fpn_backbone
from defeat.errors import ConfigError

Sizes = Sequence[Sequence[int]]

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
        box_head_channels: width of the two fully connected layers of the box head.

    The other arguments, and the errors that are raised, are those of all builders, see above.
    """
    topmost = LastLevelMaxPool()
    body = fpn_backbone(
        backbone, fpn_channels, returned_layers, trainable_layers, norm, stride_in_1x1, topmost
    )
    strides = _strides(returned_layers, extra=1)
    pooled = [str(i) for i in range(len(returned_layers))]  # all maps but the topmost
    detector = FasterRCNN(
        body,
        **_transform(min_size, max_size, size_divisible),
        rpn_anchor_generator=_anchors(anchor_sizes or [(8 * s,) for s in strides], aspect_ratios, strides),
        rpn_pre_nms_top_n_train=rpn_pre_nms_top_n_train,
        rpn_pre_nms_top_n_test=rpn_pre_nms_top_n_test,
        rpn_post_nms_top_n_train=rpn_post_nms_top_n_train,
        rpn_post_nms_top_n_test=rpn_post_nms_top_n_test,
        rpn_batch_size_per_image=rpn_batch_size_per_image,
        box_roi_pool=ParallelRoIAlign(pooled, 7, 2, strides=strides[:-1]),
        box_head=TwoMLPHead(fpn_channels * 7 * 7, box_head_channels),
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
    topmost = LastLevelP6P7(fpn_channels, fpn_channels)
    body = fpn_backbone(
        backbone, fpn_channels, returned_layers, trainable_layers, norm, stride_in_1x1, topmost
    )
    strides = _strides(returned_layers, extra=2)
    octaves = [[int(4 * s * 2 ** (i / 3)) for i in range(3)] for s in strides]
    detector = RetinaNet(
        body,
        num_classes,
        **_transform(min_size, max_size, size_divisible),
        anchor_generator=_anchors(anchor_sizes or octaves, aspect_ratios, strides),
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
    topmost = LastLevelP6P7(fpn_channels, fpn_channels)
    body = fpn_backbone(
        backbone, fpn_channels, returned_layers, trainable_layers, norm, stride_in_1x1, topmost
    )
    strides = _strides(returned_layers, extra=2)
    sizes = anchor_sizes or [(s,) for s in strides]
    anchors = _anchors(sizes, (1.0,), strides)
    _check_scales(sizes)
    detector = FCOS(
        body,
        num_classes,
        **_transform(min_size, max_size, size_divisible),
        anchor_generator=anchors,
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


def _check_scales(sizes: Sizes) -> None:
    """Every box must belong to a level: torchvision trains without a word on boxes that belong to none."""
    if len(sizes[0]) != 1:
        raise ConfigError(f"anchor_sizes has {len(sizes[0])} sizes a level, but FCOS takes one")
    for (lower,), (upper,) in pairwise(sizes):
        if upper > 2 * lower:
            raise ConfigError(
                f"FCOS levels of size {lower} and {upper} leave a gap: boxes that reach {8 * lower} to "
                f"{4 * upper} pixels from a cell would be learnt by none; let each size be at most twice the "
                "one before (anchor_sizes, or returned_layers without a gap)"
            )


def _strides(returned_layers: Sequence[int], extra: int) -> list[int]:
    deepest = max(returned_layers)
    return [2 ** (layer + 1) for layer in (*returned_layers, *range(deepest + 1, deepest + 1 + extra))]


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


def _anchors(sizes: Sizes, ratios: Sequence[float], strides: list[int]) -> Float32AnchorGenerator:
    if len(sizes) != len(strides):
        raise ConfigError(
            f"anchor_sizes has {len(sizes)} lists, but this detector has {len(strides)} levels "
            f"(strides {', '.join(map(str, strides))}): give one list per level"
        )
    if len({len(level) for level in sizes}) != 1:
        raise ConfigError("anchor_sizes must have the same number of sizes on every level")
    return Float32AnchorGenerator(tuple(tuple(s) for s in sizes), (tuple(ratios),) * len(sizes))

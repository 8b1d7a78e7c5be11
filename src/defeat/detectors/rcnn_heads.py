"""The heads of Faster R-CNN in torchvision's two layouts."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from defeat.detectors.backbones import NORMS, Norm
from defeat.detectors.levels import check_choice

Heads = Literal["v1", "v2"]


def rcnn_heads(heads: Heads, norm: Norm, channels: int, hidden: int, anchors: int) -> dict[str, nn.Module]:
    """Make the heads in which the layouts differ, by torchvision's names; that of the RPN for ``v2`` alone.

    Args:
        heads: see :func:`defeat.detectors.builders.faster_rcnn`.
        norm: of the four convolutions of ``v2``.
        channels: of the pyramid.
        hidden: outputs of the box head.
        anchors: of each cell.

    Raises:
        ConfigError: an unknown layout.
    """
    check_choice("heads", heads, Heads)
    if heads == "v1":
        return {"box_head": TwoMLPHead(channels * 7 * 7, hidden)}
    return {
        "rpn_head": RPNHead(channels, anchors, conv_depth=2),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [hidden], norm_layer=NORMS[norm]),
    }

"""The graph of a detector, or the reason why there is none."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.ssd import SSD

from defeat.errors import ConfigError
from defeat.export.graph.faster_rcnn import FasterRCNNGraph
from defeat.export.graph.one_stage import OneStageGraph
from defeat.export.graph.parts import with_constant_norms

MULTIPLE = 32
"""Pixels: the sides of the images that a graph takes are multiples of it."""


def exportable(detector: nn.Module, *, nms: bool) -> nn.Module:
    """Build the module that is exported in place of a detector, which stays as it is.

    It takes ``images`` (B, 3, H, W) float32 RGB in [0, 1], resized and then padded to multiples of 32 pixels,
    and ``sizes`` (B, 2) int64, height and width of each image without its padding. It gives, in pixels of the
    resized images, ``boxes`` (B, D, 4) float32 xyxy, ``scores`` (B, D) float32, ``labels`` (B, D) int64, best
    first and padded with zeros, and ``count`` (B,) int64, how many there are. D is ``detections_per_img``.

    Args:
        detector: in eval mode, on the CPU.
        nms: False leaves the last suppression, the score threshold and the limit to the user: boxes, scores
            and labels of all N candidates, in no order; their number depends on the size of the images.

    Raises:
        ConfigError: see :func:`check_exportable`.
    """
    check_exportable(detector)
    graph = FasterRCNNGraph if type(detector) is FasterRCNN else OneStageGraph
    return graph(with_constant_norms(detector), nms=nms).eval()


def check_exportable(detector: nn.Module) -> None:
    """Refuse a detector of which no graph can be made.

    Raises:
        ConfigError: it is none of torchvision's Faster R-CNN, RetinaNet and FCOS, or has parts that compute
            otherwise than torchvision's own, or pads to other sizes than multiples of 32.
    """
    name = type(detector).__name__
    if isinstance(detector, MaskRCNN | KeypointRCNN):
        raise ConfigError(
            f"{name} cannot be exported as a graph: its masks or keypoints have no output there; "
            "format=state_dict and format=safetensors can hold it"
        )
    if type(detector) not in _PARTS:
        kind = "SSD" if isinstance(detector, SSD) else name
        raise ConfigError(
            f"{kind} cannot be exported as a graph: only torchvision's FasterRCNN, RetinaNet and FCOS can, "
            "no other class and no subclass; format=state_dict and format=safetensors can hold it"
        )
    for path, expected in _PARTS[type(detector)].items():
        part = type(detector.get_submodule(path))
        if part is not expected:
            raise ConfigError(
                f"{name} cannot be exported as a graph: its {path} is a {part.__name__}, and only that of "
                f"torchvision, {expected.__name__}, is known"
            )
    model = cast(Any, detector)
    if model.transform.size_divisible % MULTIPLE:
        raise ConfigError(
            f"{name} cannot be exported as a graph: it pads to multiples of size_divisible="
            f"{model.transform.size_divisible} pixels, and graphs take multiples of {MULTIPLE}"
        )
    if type(detector) is FasterRCNN and model.roi_heads.box_roi_pool.scales is None:
        raise ConfigError(f"{name} cannot be exported as a graph: the scales of its RoIAlign are not known")


_PARTS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {
    FasterRCNN: {"rpn": RegionProposalNetwork, "rpn.head": RPNHead, "roi_heads": RoIHeads},
    RetinaNet: {"head": RetinaNetHead},
    FCOS: {"head": FCOSHead},
}
"""The parts of each class whose computation its graph repeats, and their classes."""

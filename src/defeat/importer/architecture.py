"""The detector that tensors are of, by their names and shapes in torchvision's terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from defeat.errors import WeightsError
from defeat.importer.heads import BOXES, LOGITS, REGRESSION, SCORES
from defeat.importer.names import BODY, PYRAMID
from defeat.importer.refusals import refusal
from defeat.io.text import few

_BACKBONES: Mapping[tuple[str, int, int], str] = {
    ("2,2,2,2", 1, 64): "resnet18",
    ("3,4,6,3", 1, 64): "resnet50",
    ("3,4,23,3", 1, 64): "resnet101",
    ("3,8,36,3", 1, 64): "resnet152",
    ("3,4,23,3", 32, 4): "resnext101_32x4d",
    ("3,4,23,3", 32, 8): "resnext101_32x8d",
    ("3,4,23,3", 64, 4): "resnext101_64x4d",
}
"""Blocks of the four stages, groups and width of a group in the first stage, and the name of the backbone."""

_LEVELS = {"faster_rcnn": 4, "retinanet": 3, "fcos": 3}
"""Stages below the pyramid of each family."""


class Architecture(NamedTuple):
    """A detector as the builders of this project take it."""

    family: str
    """Name of the builder."""
    backbone: str
    fpn_channels: int
    classes: int
    """K, without background."""
    anchors: int
    """Anchors in a cell; 1 for FCOS."""
    v2: bool
    """Whether pyramid and box head are normalised, as in torchvision's V2 and in detectron2's LSJ models."""
    box_head_channels: int | None
    """Width of the box head's fully connected layers; None for one-stage detectors."""
    extra_levels_from: str | None
    """``c5`` or ``p5``, from which P6 is made; None for Faster R-CNN."""

    def __str__(self) -> str:
        family = {"faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet", "fcos": "FCOS"}[self.family]
        heads = " with V2 heads" if self.v2 else ""
        return f"{family} {self.backbone}{heads}, {self.classes} classes"


def recognise(tensors: Mapping[str, Tensor], path: Path, *, background: bool) -> Architecture:
    """Tell family, backbone and heads.

    Args:
        tensors: under torchvision's names; only the shapes are looked at.
        path: for messages.
        background: whether one-stage heads have an output for background, as torchvision's have.

    Raises:
        WeightsError: a part is missing or of a size that no builder makes.
    """
    family = _family(tensors, path)
    laterals = sorted(
        name for name in tensors if re.fullmatch(rf"{PYRAMID}inner_blocks\.\d\.0\.weight", name)
    )
    if len(laterals) != _LEVELS[family]:
        key = laterals[-1] if laterals else "backbone"
        reason = f"the pyramid is built on {len(laterals)} stages, and not on {_LEVELS[family]}"
        raise refusal(path, key, reason, "take a model with the framework's own FPN; C4 and DC5 have none")
    backbone = _backbone(tensors, path)
    channels = len(tensors[laterals[0]])
    v2 = f"{PYRAMID}inner_blocks.0.1.weight" in tensors
    if family == "faster_rcnn":
        hidden = tensors[f"{SCORES}weight"].shape[1]
        classes = len(tensors[f"{SCORES}weight"]) - 1
        _check_boxes(tensors, classes, path)
        anchors = _rows(tensors, "rpn.head.cls_logits.weight", path)
        return Architecture(family, backbone, channels, classes, anchors, v2, hidden, None)
    anchors = _rows(tensors, f"{REGRESSION}weight", path) // 4
    outputs = _rows(tensors, f"{LOGITS}weight", path)
    if not anchors or outputs % anchors:
        reason = f"{outputs} channels are no whole number for each of {anchors} anchors in a cell"
        raise refusal(path, f"{LOGITS}weight", reason, "take a model whose head has not been cut")
    p6 = tensors.get(f"{PYRAMID}extra_blocks.p6.weight")
    stage = _input_of_p6(p6, channels, path)
    return Architecture(family, backbone, channels, outputs // anchors - background, anchors, v2, None, stage)


def _family(tensors: Mapping[str, Tensor], path: Path) -> str:
    if f"{SCORES}weight" in tensors:
        return "faster_rcnn"
    if f"{LOGITS}weight" in tensors:
        return "fcos" if any("bbox_ctrness" in name for name in tensors) else "retinanet"
    raise WeightsError(
        f"{path} holds neither the box head of a Faster R-CNN nor the classes of a RetinaNet, only "
        f"{few(list(tensors))}: give a whole detector of one of these"
    )


def _backbone(tensors: Mapping[str, Tensor], path: Path) -> str:
    found = [re.fullmatch(rf"{BODY}layer(\d)\.(\d+)\.conv2\.weight", name) for name in tensors]
    blocks = [sum(match is not None and match[1] == str(stage) for match in found) for stage in (1, 2, 3, 4)]
    first = tensors.get(f"{BODY}layer1.0.conv2.weight")
    if first is None:
        raise refusal(path, "backbone", "it is no ResNet or ResNeXt", f"take one of {_known()}")
    width, in_group = first.shape[:2]
    bottleneck = f"{BODY}layer1.0.conv3.weight" in tensors
    depth = ",".join(map(str, blocks))
    if not bottleneck and (depth, width, in_group) == ("3,4,6,3", 64, 64):
        return "resnet34"
    name = _BACKBONES.get((depth, width // in_group, in_group))
    if name is None or bottleneck == (name == "resnet18"):
        reason = (
            f"a ResNet of {depth} blocks, {width // in_group} groups of {in_group} channels is not built here"
        )
        raise refusal(path, f"{BODY}layer1.0.conv2.weight", reason, f"take one of {_known()}")
    return name


def _known() -> str:
    return ", ".join(dict.fromkeys(["resnet18", "resnet34", *_BACKBONES.values()]))


def _check_boxes(tensors: Mapping[str, Tensor], classes: int, path: Path) -> None:
    rows = _rows(tensors, f"{BOXES}weight", path)
    if rows == 4 and classes > 1:
        reason = f"one box for all {classes} classes (class-agnostic); torchvision's has one for each"
        raise refusal(path, f"{BOXES}weight", reason, "take the model that is not class-agnostic")


def _rows(tensors: Mapping[str, Tensor], name: str, path: Path) -> int:
    if name not in tensors:
        raise refusal(path, name, "this layer is not there", "give the whole detector")
    return len(tensors[name])


def _input_of_p6(p6: Tensor | None, channels: int, path: Path) -> str:
    if p6 is None:
        key = f"{PYRAMID}extra_blocks.p6.weight"
        raise refusal(path, key, "there is no P6", "take a RetinaNet whose pyramid goes from P3 to P7")
    return "p5" if p6.shape[1] == channels else "c5"

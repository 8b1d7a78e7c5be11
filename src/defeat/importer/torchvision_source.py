"""Weights of torchvision's own detectors, and of what others trained with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from defeat.detectors.class_order import BACKGROUND, UNUSED, order, reorder
from defeat.detectors.loading import ZERO_EPS
from defeat.detectors.state_dict_keys import OLD_NAMES
from defeat.errors import WeightsError
from defeat.importer.architecture import Architecture, recognise
from defeat.importer.classes import COCO91, find_classes, named_classes
from defeat.importer.imported import Imported, Row
from defeat.importer.names import rename
from defeat.importer.source import Source

_TABLE = (*((pattern.pattern, to) for pattern, to in OLD_NAMES), (r"(.*)", r"\1"))

_FCOS_HEAD = (r"(head\..*)", r"\1")
"""FCOS has kept the names that RetinaNet's head had."""

_EPS = 1e-5

_GROUPS = "head.classification_head.conv.0.1.weight"
"""Only RetinaNet's V2 head has normalisation, in groups of channels; FCOS has it under other names."""


def convert_torchvision(source: Source, classes: str | None) -> Imported:
    """Name the builder of torchvision's tensors, and leave out outputs that stand for nothing.

    Raises:
        WeightsError: its classes are not known, or it is a detector that no builder here makes.
        ConfigError: ``classes`` is no file.
    """
    fcos = any("bbox_ctrness" in name for name in source.tensors)
    renamed = rename(source.tensors, (_FCOS_HEAD, *_TABLE) if fcos else _TABLE).names
    tensors = {new: source.tensors[old] for old, new in renamed.items()}
    if not any(name.startswith("backbone.body.layer1.") for name in tensors):
        raise WeightsError(
            f"{source.name} has torchvision's names and another backbone than a ResNet: it needs no "
            "import, name its builder: detector@teacher=torchvision_frcnn_r50_v2 "
            f"teacher.model._target_=torchvision.models.detection.<builder> teacher.weights={source.name}"
        )
    network = recognise(tensors, source.path, background=True)
    rows = [Row("mapped", len(tensors), f"torchvision's names: {network}")]
    outputs, origin = _outputs(source, classes, network)
    names = [name for name in outputs[1:] if name != UNUSED]
    if len(names) != network.classes:
        kept = order(outputs, names, source.name)
        assert kept is not None  # the same names without those that stand for nothing
        tensors = reorder(tensors, kept, len(outputs), source.name)
        left_out = len(outputs) - 1 - len(names)
        rows.append(Row("dropped", None, f"{left_out} outputs that stand for no class"))
    rows.append(Row("mapped", None, f"{len(names)} class names, from {origin}"))
    if source.file.enum in ZERO_EPS:
        tensors = {**tensors, **_with_epsilon(tensors)}
        rows.append(Row("folded", None, "norms without epsilon, into their weights"))
    elif source.file.enum is None and not network.v2:
        told = "whether its norms have epsilon 1e-5; trained from torchvision's COCO_V1 they have 0"
        rows.append(Row("not checked", None, told))
    return Imported(tensors, names, _model(network, tensors), rows)


def _outputs(source: Source, classes: str | None, network: Architecture) -> tuple[list[str], str]:
    """Name every output, background first."""
    known = source.file.outputs
    if classes is None and known is not None:
        return list(known), "torchvision"
    if classes is not None and network.classes == len(COCO91) - 1 and named_classes(classes) == _coco():
        return list(COCO91), f"classes={classes}, at the ids of COCO"
    names, origin = find_classes(classes, source.meta, network.classes, source.name)
    return [BACKGROUND, *names], origin


def _coco() -> list[str]:
    return [name for name in COCO91[1:] if name != UNUSED]


def _with_epsilon(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scale the weights of norms that had no epsilon for norms that add 1e-5 to the variance."""
    scaled = {}
    for name, variance in tensors.items():
        weight = name.removesuffix("running_var") + "weight"
        if name.endswith("running_var") and weight in tensors:
            wide = variance.double()
            factor = torch.where(wide > 0, ((wide + _EPS) / wide).sqrt(), 1.0)
            scaled[weight] = (tensors[weight].double() * factor).to(tensors[weight].dtype)
    return scaled


def _model(network: Architecture, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Name the builder and the settings by which it computes what torchvision's does."""
    resize = {"min_size": 800, "max_size": 1333}
    if network.family == "retinanet" and _GROUPS in tensors:
        builder = "torchvision.models.detection.retinanet_resnet50_fpn_v2"
        return {"_target_": builder, "weights": None, "weights_backbone": None, **resize}
    model: dict[str, Any] = {
        "_target_": f"defeat.detectors.{network.family}",
        "backbone": network.backbone,
        "fpn_channels": network.fpn_channels,
        "norm": "frozen",
        **resize,
        "strides": "derived",
    }
    if network.family != "fcos":
        model["anchors"] = "rounded"
    if network.family == "faster_rcnn":
        heads = "v2" if network.v2 else "v1"
        hidden = network.box_head_channels
        return {**model, "roi_align": "torchvision", "heads": heads, "box_head_channels": hidden}
    return {**model, "extra_levels_from": network.extra_levels_from, "relu_before_p7": True}

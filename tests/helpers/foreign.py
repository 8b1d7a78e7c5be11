"""State dicts as mmdetection and detectron2 lay them out, made of torchvision's by tables of their own.

Nothing here is shared with defeat/importer: names are put together by hand, rows are moved one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defeat.detectors import faster_rcnn, retinanet
from defeat.detectors.weights import WeightFile
from defeat.importer.source import Source

Tensors = dict[str, Tensor]

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
BLOCKS |= {f"resnext101_{size}": BLOCKS["resnet101"] for size in ("32x4d", "32x8d", "64x4d")}

EXACT: dict[str, Any] = {"anchors": "float", "strides": "fixed"}

NORM = ("weight", "bias", "running_mean", "running_var")


def build(family: str, backbone: str, classes: int, **more: Any) -> nn.Module:
    """A detector with the settings of another framework."""
    builder: Any = {"faster_rcnn": faster_rcnn, "retinanet": retinanet}[family]
    aligned = {"roi_align": "aligned"} if family == "faster_rcnn" else {}
    return builder(classes + 1, backbone=backbone, **EXACT, **aligned, **more)  # type: ignore[no-any-return]


@torch.no_grad()
def randomise(detector: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms statistics and weights of their own, as trained ones have, and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in detector.state_dict().items():
        if "running_var" in name or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.dim() == 1:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return detector


def body_pairs(backbone: str, framework: str) -> Iterator[tuple[str, str]]:
    """torchvision's names of a ResNet, and those of a framework."""
    here = "backbone.body"
    there = {"mmdetection": "backbone", "detectron2": "backbone.bottom_up"}[framework]
    d2 = framework == "detectron2"
    yield f"{here}.conv1.weight", f"{there}.{'stem.' if d2 else ''}conv1.weight"
    for last in NORM:
        yield f"{here}.bn1.{last}", f"{there}.stem.conv1.norm.{last}" if d2 else f"{there}.bn1.{last}"
    for stage, count in enumerate(BLOCKS[backbone], 1):
        for block in range(count):
            ours = f"{here}.layer{stage}.{block}"
            theirs = f"{there}.{f'res{stage + 1}' if d2 else f'layer{stage}'}.{block}"
            for conv in (1, 2, 3):
                yield f"{ours}.conv{conv}.weight", f"{theirs}.conv{conv}.weight"
                for last in NORM:
                    norm = f"conv{conv}.norm" if d2 else f"bn{conv}"
                    yield f"{ours}.bn{conv}.{last}", f"{theirs}.{norm}.{last}"
            if block == 0:
                yield f"{ours}.downsample.0.weight", f"{theirs}.{'shortcut' if d2 else 'downsample.0'}.weight"
                for last in NORM:
                    shortcut = "shortcut.norm" if d2 else "downsample.1"
                    yield f"{ours}.downsample.1.{last}", f"{theirs}.{shortcut}.{last}"


def pyramid_pairs(family: str, framework: str, v2: bool) -> Iterator[tuple[str, str]]:
    levels, first = (4, 2) if family == "faster_rcnn" else (3, 3)
    for i in range(levels):
        for block, mm, d2 in (("inner", "lateral", "lateral"), ("layer", "fpn", "output")):
            ours = f"backbone.fpn.{block}_blocks.{i}"
            theirs = f"neck.{mm}_convs.{i}" if framework == "mmdetection" else f"backbone.fpn_{d2}{first + i}"
            conv = f"{theirs}.conv" if framework == "mmdetection" else theirs
            for last in ("weight",) if v2 else ("weight", "bias"):
                yield f"{ours}.0.{last}", f"{conv}.{last}"
            for last in NORM if v2 else ():
                norm = "bn" if framework == "mmdetection" else "norm"
                yield f"{ours}.1.{last}", f"{theirs}.{norm}.{last}"
    for p in (6, 7) if family == "retinanet" else ():
        for last in ("weight", "bias"):
            d2_name = f"backbone.top_block.p{p}.{last}"
            theirs = f"neck.fpn_convs.{p - 3}.conv.{last}" if framework == "mmdetection" else d2_name
            yield f"backbone.fpn.extra_blocks.p{p}.{last}", theirs


FASTER = {
    "rpn.head.cls_logits": ("rpn_head.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
    "rpn.head.bbox_pred": ("rpn_head.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
    "roi_heads.box_predictor.cls_score": ("roi_head.bbox_head.fc_cls", "roi_heads.box_predictor.cls_score"),
    "roi_heads.box_predictor.bbox_pred": ("roi_head.bbox_head.fc_reg", "roi_heads.box_predictor.bbox_pred"),
}
V1 = {
    "rpn.head.conv.0.0": ("rpn_head.rpn_conv", "proposal_generator.rpn_head.conv"),
    "roi_heads.box_head.fc6": ("roi_head.bbox_head.shared_fcs.0", "roi_heads.box_head.fc1"),
    "roi_heads.box_head.fc7": ("roi_head.bbox_head.shared_fcs.1", "roi_heads.box_head.fc2"),
}
V2 = {
    "rpn.head.conv.0.0": ("rpn_head.rpn_conv.0.conv", "proposal_generator.rpn_head.conv.conv0"),
    "rpn.head.conv.1.0": ("rpn_head.rpn_conv.1.conv", "proposal_generator.rpn_head.conv.conv1"),
    "roi_heads.box_head.5": ("roi_head.bbox_head.shared_fcs.0", "roi_heads.box_head.fc1"),
}
RETINA = {
    "head.classification_head.cls_logits": ("bbox_head.retina_cls", "head.cls_score"),
    "head.regression_head.bbox_reg": ("bbox_head.retina_reg", "head.bbox_pred"),
    **{f"head.classification_head.conv.{i}.0": (f"bbox_head.cls_convs.{i}.conv", f"head.cls_subnet.{2 * i}")
       for i in range(4)},
    **{f"head.regression_head.conv.{i}.0": (f"bbox_head.reg_convs.{i}.conv", f"head.bbox_subnet.{2 * i}")
       for i in range(4)},
}  # fmt: skip


def head_pairs(family: str, framework: str, v2: bool) -> Iterator[tuple[str, str]]:
    column = ("mmdetection", "detectron2").index(framework)
    table = RETINA if family == "retinanet" else {**FASTER, **(V2 if v2 else V1)}
    for ours, theirs in table.items():
        for last in ("weight", "bias"):
            yield f"{ours}.{last}", f"{theirs[column]}.{last}"
    for i in range(4) if v2 else ():
        conv = ("roi_head.bbox_head.shared_convs.{}.conv", "roi_heads.box_head.conv{}")[column]
        norm = ("roi_head.bbox_head.shared_convs.{}.bn", "roi_heads.box_head.conv{}.norm")[column]
        yield f"roi_heads.box_head.{i}.0.weight", f"{conv.format(i + column)}.weight"
        for last in NORM:
            yield f"roi_heads.box_head.{i}.1.{last}", f"{norm.format(i + column)}.{last}"


def foreign(detector: nn.Module, family: str, backbone: str, framework: str, *, v2: bool = False) -> Tensors:
    """The weights of a detector as a framework lays them out, with a stem for normalised RGB."""
    state = {k: v for k, v in detector.state_dict().items() if not k.endswith("num_batches_tracked")}
    pairs = [
        *body_pairs(backbone, framework),
        *pyramid_pairs(family, framework, v2),
        *head_pairs(family, framework, v2),
    ]
    assert sorted(ours for ours, _ in pairs) == sorted(state)
    return {theirs: _rows(ours, state[ours], framework) for ours, theirs in pairs}


def _rows(name: str, tensor: Tensor, framework: str) -> Tensor:
    """Move rows one by one into a framework's order."""
    if ".box_predictor.cls_score." in name:  # background last
        return torch.stack([*tensor[1:], tensor[0]])
    if ".box_predictor.bbox_pred." in name:  # no box for it
        return tensor[4:]
    if (".bbox_reg." not in name and ".cls_logits." not in name) or name.startswith("rpn."):
        return tensor
    each = len(tensor) // 9  # values of an anchor
    rows = []
    for place in range(9):
        ratio, scale = (place % 3, place // 3) if framework == "detectron2" else (place // 3, place % 3)
        anchor = tensor[(3 * ratio + scale) * each : (3 * ratio + scale + 1) * each]
        rows += list(anchor[1:] if ".cls_logits." in name else anchor)
    return torch.stack(rows)


def source_of(tensors: Tensors, kind: str, name: str = "model.pth", meta: Any = None) -> Source:
    """Tensors as an opened file."""
    file = WeightFile({}, None, None)
    return Source(name, Path(name), kind, tensors, {}, meta, file, None, "", (), {})

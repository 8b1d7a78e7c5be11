"""What others trained with torchvision: its builders are told by names and shapes, its unused outputs go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from defeat.detectors.weights import WeightFile
from defeat.errors import WeightsError
from defeat.importer.convert import convert
from defeat.importer.imported import Imported
from defeat.importer.source import Source, read_source
from tests.helpers.foreign import source_of

COCO = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
IDS = {"person": 1, "stop sign": 13, "bird": 16, "toothbrush": 90}
"""Ids of COCO, which are torchvision's outputs."""


def made(builder: Callable[..., nn.Module], outputs: int = 91) -> dict[str, Tensor]:
    """The names and shapes that a builder of torchvision makes."""
    with torch.device("meta"):
        state = builder(weights=None, weights_backbone=None, num_classes=outputs).state_dict()
    return {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}


def source(tensors: dict[str, Tensor], outputs: Any = None, enum: str | None = None) -> Source:
    file = WeightFile({}, None, None, outputs=outputs, enum=enum)
    return source_of(tensors, "torchvision")._replace(file=file)


@pytest.mark.parametrize(
    ("name", "builder", "settings"),
    [
        ("fasterrcnn_resnet50_fpn", "faster_rcnn", {"heads": "v1", "roi_align": "torchvision"}),
        ("fasterrcnn_resnet50_fpn_v2", "faster_rcnn", {"heads": "v2", "anchors": "rounded"}),
        ("retinanet_resnet50_fpn", "retinanet", {"extra_levels_from": "p5", "relu_before_p7": True}),
        ("retinanet_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2", {"weights": None}),
        ("fcos_resnet50_fpn", "fcos", {"strides": "derived"}),
    ],
)
def test_torchvisions_detectors_are_told_apart(name: str, builder: str, settings: dict[str, Any]) -> None:
    tensors = made(getattr(detection, name))
    imported = convert(source(tensors, tuple(COCO)))
    assert imported.model["_target_"].endswith(f".{builder}")
    assert settings.items() <= imported.model.items()
    assert len(imported.classes) == 80
    assert convert(source(tensors), classes="coco80").classes == imported.classes


@pytest.mark.parametrize("classes", [None, "coco80"])
def test_outputs_that_stand_for_nothing_are_left_out(classes: str | None) -> None:
    tensors = made(detection.fasterrcnn_resnet50_fpn)
    score, box = "roi_heads.box_predictor.cls_score.bias", "roi_heads.box_predictor.bbox_pred.bias"
    tensors |= {score: torch.arange(91.0), box: torch.arange(91.0).repeat_interleave(4)}
    given = source(tensors, tuple(COCO) if classes is None else None)
    imported = convert(given, classes=classes)
    for name, number in IDS.items():
        label = imported.classes.index(name) + 1
        assert imported.tensors[score][label] == number
        assert imported.tensors[box][4 * label : 4 * label + 4].tolist() == [number] * 4
    assert imported.tensors[score][0] == 0


def test_names_of_before_torchvision_0_13() -> None:
    new = made(detection.fasterrcnn_resnet50_fpn)
    old = {
        name.replace("_blocks.3.0.", "_blocks.3.").replace("conv.0.0.", "conv."): x for name, x in new.items()
    }
    assert old.keys() != new.keys()
    assert convert(source(old), classes="coco80").tensors.keys() == new.keys()


def test_norms_without_epsilon_compute_the_same_with_it() -> None:
    tensors = made(detection.fasterrcnn_resnet50_fpn)
    torch.manual_seed(0)
    variance = torch.rand(64) ** 8  # from 1e-12 on
    variance[0] = 0
    stem = "backbone.body.bn1"
    tensors |= {f"{stem}.running_var": variance, f"{stem}.weight": torch.randn(64)}
    known = source(tensors, tuple(COCO), "FasterRCNN_ResNet50_FPN_Weights.COCO_V1")
    imported: Imported = convert(known)
    before = tensors[f"{stem}.weight"].double() / variance.double().sqrt()
    after = imported.tensors[f"{stem}.weight"].double() / (variance.double() + 1e-5).sqrt()
    assert torch.allclose(before[1:], after[1:], rtol=1e-6)
    assert torch.isfinite(after).all()
    assert not any("epsilon 1e-5" in row.what for row in imported.rows)
    assert any("epsilon 1e-5" in row.what for row in convert(source(tensors, tuple(COCO))).rows)


def test_mask_r_cnn_gives_its_boxes(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    torch.save({"model": {f"module.{name}": torch.zeros(1) for name in names}}, tmp_path / "mask.pth")
    opened = read_source(str(tmp_path / "mask.pth"))
    assert opened.tensors.keys() == made(detection.fasterrcnn_resnet50_fpn_v2).keys()
    assert list(opened.dropped) == ["the mask branch"]


def test_other_backbones_need_no_import() -> None:
    tensors = made(detection.fasterrcnn_mobilenet_v3_large_fpn)
    with pytest.raises(WeightsError, match=r"needs no import.*teacher\.model\._target_="):
        convert(source(tensors), classes="coco80")

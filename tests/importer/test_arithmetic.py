"""Imported detectors against the frameworks' arithmetic, written down again in tests/helpers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from defeat.config import build_factory
from defeat.importer.convert import convert
from tests.helpers.foreign import Tensors, build, foreign, randomise, source_of
from tests.helpers.foreign_arithmetic import Foreign, Found

CLASSES = ["cat", "dog", "crow"]
HEIGHT, WIDTH = 64, 96  # whose P6 and P7 are of no whole number of cells


def made_up(family: str, framework: str, **more: Any) -> Tensors:
    """Weights of a framework's layout, for tensors small enough to loop over."""
    torch.manual_seed(0)
    detector: Any = randomise(build(family, "resnet50", len(CLASSES), fpn_channels=16, **more))
    with torch.no_grad():
        for name, x in detector.named_parameters():  # scores and boxes that differ, and none that is endless
            if "roi_heads.box_predictor" in name or "rpn.head.bbox_pred" in name:
                x.mul_(0.005 if "heads" in more else 0.05)
            elif "_head.conv" in name or "cls_logits.weight" in name or "bbox_reg" in name:
                x.mul_(3)
        if family == "retinanet":
            detector.head.classification_head.cls_logits.bias.sub_(3)
    tensors = foreign(detector, family, "resnet50", framework, v2="heads" in more)
    if framework == "detectron2":  # pixels of 0 to 255
        tensors["backbone.bottom_up.stem.conv1.weight"] = tensors["backbone.bottom_up.stem.conv1.weight"] / 57
    return tensors


def imported(tensors: Tensors, framework: str, **more: Any) -> Any:
    made = convert(source_of(tensors, framework, meta={"CLASSES": tuple(CLASSES)}))
    model = {**made.model, "min_size": HEIGHT, "max_size": WIDTH, "_partial_": True, **more}
    detector: nn.Module = build_factory(OmegaConf.create({"model": model}).model)(num_classes=4)
    detector.load_state_dict(made.tensors, strict=True)
    return detector.double().eval()


def picture() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (3, HEIGHT, WIDTH))


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def check_maps(detector: Any, naive: Foreign, image: Tensor, finest: int) -> None:
    batch, _ = detector.transform([image.double() / 255])
    maps = list(detector.backbone(batch.tensors).values())
    expected = [naive.pyramid(image, finest)[level] for level in range(finest, finest + 5)]
    differences = [difference(x[0], y) for x, y in zip(maps, expected, strict=True)]
    assert max(differences) < 1e-4, differences


def check_found(found: dict[str, Tensor], expected: Found) -> None:
    """The same boxes under the same names, whatever their order among equal scores."""
    assert len(expected.scores) > 5
    assert len(found["scores"]) == len(expected.scores)
    for box, score, label in zip(expected.boxes, expected.scores, expected.labels, strict=True):
        sides = (found["boxes"] - box).abs().amax(1)  # (N,) pixels
        scores = (found["scores"] - score).abs()
        assert ((sides < 1e-3) & (scores < 1e-5) & (found["labels"] == label + 1)).any()


@pytest.mark.parametrize(
    ("framework", "heads"), [("mmdetection", {}), ("detectron2", {}), ("detectron2", {"heads": "v2"})]
)
def test_faster_rcnn(framework: str, heads: dict[str, str]) -> None:
    tensors = made_up("faster_rcnn", framework, box_head_channels=16, **heads)
    detector = imported(tensors, framework, rpn_post_nms_top_n_test=12)
    naive = Foreign(tensors, framework, "resnet50", caffe=framework == "detectron2")
    image = picture()
    with torch.no_grad():
        check_maps(detector, naive, image, 2)
        check_found(detector([image.double() / 255])[0], naive.faster_rcnn(image, 12))


@pytest.mark.parametrize("framework", ["mmdetection", "detectron2"])
def test_retinanet(framework: str) -> None:
    tensors = made_up("retinanet", framework, extra_levels_from="c5")
    detector = imported(tensors, framework)
    naive = Foreign(
        tensors, framework, "resnet50", caffe=framework == "detectron2", relu=framework == "detectron2"
    )
    image = picture()
    with torch.no_grad():
        check_maps(detector, naive, image, 3)
        check_found(detector([image.double() / 255])[0], naive.retinanet(image))

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    ssd300_vgg16,
)

from defeat.detectors import faster_rcnn, fcos, inspect_detector, retinanet
from defeat.detectors.backbones import NAMES
from defeat.detectors.create import create_detector
from defeat.errors import ConfigError
from defeat.training.module import DetectionModule

SMALL = {"backbone": "resnet10", "fpn_channels": 64, "min_size": 64, "max_size": 64}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("resnet34", "resnet152") and "101" not in n])
@pytest.mark.parametrize(
    ("build", "strides", "head"),
    [
        (faster_rcnn, [4, 8, 16, 32, 64], "proposals"),
        (retinanet, [8, 16, 32, 64, 128], "anchors"),
        (fcos, [8, 16, 32, 64, 128], "points"),
    ],
)
def test_levels_of_every_backbone(name: str, build, strides: list[int], head: str) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        spec = inspect_detector(build(3, backbone=name, fpn_channels=64))
    assert [level.stride for level in spec.neck] == strides
    assert {level.channels for level in spec.neck} == {64}
    assert [level.stride for level in spec.stages] == [s for s in strides if s <= 32]
    assert spec.head == head


@pytest.mark.parametrize("build", [faster_rcnn, retinanet, fcos])
def test_batches_are_padded_to_a_multiple(build) -> None:  # type: ignore[no-untyped-def]
    images = [torch.rand(3, 64, 50), torch.rand(3, 40, 64)]  # 82 x 64 and 60 x 96 when resized
    for multiple, side in ((32, 96), (128, 128)):
        transform = build(3, **SMALL | {"max_size": 96}, size_divisible=multiple).transform
        assert transform(images)[0].tensors.shape == (2, 3, side, side)
    for multiple in (0, 48):
        with pytest.raises(ConfigError, match=f"size_divisible={multiple}: give a multiple of 32"):
            build(3, **SMALL, size_divisible=multiple)


def test_fcos_learns_from_images_without_boxes() -> None:
    detector = fcos(3, **SMALL, trainable_layers=5, norm="batch")
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    full = {"boxes": torch.tensor([[4.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([2])}
    for targets, objects in (([empty, full], True), ([empty, empty], False)):
        losses = detector([torch.rand(3, 64, 64)] * 2, targets)
        assert all(map(torch.isfinite, losses.values()))
        detector.zero_grad()
        sum(losses.values()).backward()
        gradients = [p.grad for p in detector.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert bool(losses["bbox_regression"] > 0) == objects


def test_fcos_returns_its_background_output_as_a_detection_that_the_module_leaves_out() -> None:
    detector = fcos(3, **SMALL, score_thresh=0.0).eval()
    with torch.no_grad():
        detector.head.classification_head.cls_logits.bias[0] = 5.0
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        assert 0 in detector([image / 255])[0]["labels"]
        found = DetectionModule(detector, ("a", "b")).eval()([image])[0]
    assert set(found["labels"].tolist()) <= {1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fpn_channels": 80}, "fpn_channels=80: FCOS normalises its head in 32 groups"),
        ({"fpn_channels": 32}, "fpn_channels=32: .* give a multiple of 32 from 64 on"),
        ({"anchor_sizes": [[8, 9], [16, 18], [32, 36], [64, 72], [128, 144]]}, "2 sizes a level, but FCOS"),
        # A box that reaches 100 pixels from a cell would belong to no level.
        ({"returned_layers": [2, 4]}, "size 8 and 32 leave a gap: boxes that reach 64 to 128 pixels"),
        ({"anchor_sizes": [[8], [16], [32], [65], [128]]}, "size 32 and 65 leave a gap"),
    ],
)
def test_what_fcos_cannot_be_is_refused(settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=message):
        fcos(2, **{**SMALL, **settings})


def test_stride_in_1x1_moves_the_strides_and_keeps_the_levels() -> None:
    body = faster_rcnn(2, backbone="resnet50", fpn_channels=8, stride_in_1x1=True).backbone.body
    for stage in (body.layer2, body.layer3, body.layer4):
        assert stage[0].conv1.stride == (2, 2)
        assert stage[0].conv2.stride == (1, 1)
    assert body.layer1[0].conv1.stride == (1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'"),
        ({"norm": "group"}, "unknown norm 'group'"),
        ({"returned_layers": [3, 2]}, "returned_layers"),
        ({"returned_layers": [0, 1]}, "returned_layers"),
        ({"returned_layers": []}, "returned_layers is empty"),
        ({"trainable_layers": 6}, "trainable_layers must be 0..5, got 6"),
        ({"stride_in_1x1": True}, "stride_in_1x1=true needs a ResNet with bottlenecks, not resnet10"),
        ({"backbone": "mobilenet_v2", "stride_in_1x1": True}, "not mobilenet_v2"),
        ({"anchor_sizes": [[8], [16]]}, "anchor_sizes has 2 lists, but this detector has 5 levels"),
        ({"anchor_sizes": [[8], [16, 20], [32], [64], [128]]}, "same number of sizes"),
    ],
)
@pytest.mark.parametrize("build", [faster_rcnn, retinanet, fcos])
def test_settings_that_cannot_be_are_refused(build, settings: dict, message: str) -> None:  # type: ignore[no-untyped-def,type-arg]
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build(2, **{**SMALL, **settings})


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        (fasterrcnn_resnet50_fpn, "weights_backbone"),
        (ssd300_vgg16, "weights_backbone"),
        (partial(fasterrcnn_resnet50_fpn_v2, weights="DEFAULT"), "weights"),
    ],
)
def test_a_builder_that_would_download_is_refused(builder: Callable[..., nn.Module], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"the builder would download {name} .* set model.{name}=null"):
        create_detector(builder, ["a"])

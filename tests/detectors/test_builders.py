from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssd300_vgg16,
)
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.ops.misc import FrozenBatchNorm2d

from defeat.config import build as build_node
from defeat.config import compose_config
from defeat.detectors import faster_rcnn, fcos, inspect_detector, retinanet
from defeat.detectors.backbones import NAMES
from defeat.detectors.create import create_detector
from defeat.errors import ConfigError
from defeat.training.module import DetectionModule

SMALL = {"backbone": "resnet10", "fpn_channels": 64, "min_size": 64, "max_size": 64}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("resnet34", "resnet101", "resnet152")])
@pytest.mark.parametrize(
    ("build", "strides", "head"),
    [
        (faster_rcnn, [4, 8, 16, 32, 64], "proposals"),
        (retinanet, [8, 16, 32, 64, 128], "anchors"),
        (fcos, [8, 16, 32, 64, 128], "points"),
    ],
)
def test_levels_of_every_backbone(name: str, build, strides: list[int], head: str) -> None:  # type: ignore[no-untyped-def]
    spec = inspect_detector(build(3, backbone=name, fpn_channels=64))
    assert [level.stride for level in spec.neck] == strides
    assert {level.channels for level in spec.neck} == {64}
    assert [level.stride for level in spec.stages] == [s for s in strides if s <= 32]
    assert spec.head == head


@pytest.mark.parametrize(("name", "blocks"), [("resnet34", 16), ("resnet101", 33), ("resnet152", 50)])
def test_depth_of_the_other_resnets(name: str, blocks: int) -> None:
    detector = faster_rcnn(3, backbone=name, fpn_channels=8, box_head_channels=8)
    body = detector.backbone.body
    assert sum(len(body[f"layer{i}"]) for i in range(1, 5)) == blocks


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (faster_rcnn, fasterrcnn_resnet50_fpn),
        (retinanet, retinanet_resnet50_fpn),
        (fcos, fcos_resnet50_fpn),
    ],
)
def test_parameters_are_named_and_shaped_as_in_torchvision(ours, theirs) -> None:  # type: ignore[no-untyped-def]
    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {k: v.shape for k, v in model.state_dict().items() if "num_batches_tracked" not in k}

    assert shapes(ours(91)) == shapes(theirs(weights=None, weights_backbone=None))


def settings(of: Any, name: str = "") -> dict[str, str]:
    """Every number, flag and text that a detector and the objects it consists of have as attributes."""
    found: dict[str, str] = {}
    for key, value in vars(of).items():
        if isinstance(value, int | float | str | tuple | list):
            found[f"{name}.{key}"] = repr(value)  # anchors are tensors in a list
        elif type(value).__module__.startswith("torchvision.") or isinstance(
            value, BoxCoder | BoxLinearCoder
        ):
            found |= settings(value, f"{name}.{key}")
    if isinstance(of, nn.Module):
        for key, child in of.named_children():
            found |= settings(child, f"{name}.{key}")
    return found


@pytest.mark.parametrize("source", ["builder", "configuration"])
@pytest.mark.parametrize(
    ("build", "config", "theirs"),
    [
        (faster_rcnn, "frcnn_r50", fasterrcnn_resnet50_fpn),
        (retinanet, "retinanet_r50", retinanet_resnet50_fpn),
        (fcos, "fcos_r50", fcos_resnet50_fpn),
    ],
)
def test_every_setting_is_torchvisions_but_for_those_named_here(
    source: str,
    build: Callable[..., nn.Module],
    config: str,
    theirs: Callable[..., nn.Module],
) -> None:
    if source == "configuration":
        node = compose_config("train", [f"detector@student={config}"]).student.model
        build = build_node(node)
    found = settings(build(num_classes=91, norm="batch"))
    wanted = settings(theirs(weights=None, weights_backbone=None))
    if theirs is retinanet_resnet50_fpn:
        wanted[".detections_per_img"] = "100"  # what COCO counts
    assert {".nms_thresh", ".roi_heads.nms_thresh"} & found.keys()
    assert len(found) > 1000
    assert found == wanted


@pytest.mark.parametrize("build", [faster_rcnn, retinanet, fcos])
def test_batches_are_padded_to_a_multiple(build) -> None:  # type: ignore[no-untyped-def]
    images = [torch.rand(3, 64, 50), torch.rand(3, 40, 64)]  # 82 x 64 and 60 x 96 when resized
    for multiple, side in ((32, 96), (128, 128)):
        transform = build(3, **SMALL | {"max_size": 96}, size_divisible=multiple).transform
        assert transform(images)[0].tensors.shape == (2, 3, side, side)
    for multiple in (0, 48):
        with pytest.raises(ConfigError, match=f"size_divisible={multiple}: give a multiple of 32"):
            build(3, **SMALL, size_divisible=multiple)


def test_fcos_computes_what_torchvisions_does() -> None:
    """Levels, units of length and thresholds: the same weights give the same detections and losses."""
    size = {"min_size": 64, "max_size": 64}
    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, **size)
    ours = fcos(3, norm="batch", trainable_layers=5, **size)
    ours.load_state_dict(theirs.state_dict())
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    targets = [
        {"boxes": torch.tensor([[4.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.tensor([[10.0, 10.0, 26.0, 30.0]]), "labels": torch.tensor([1])},
    ]
    losses = [model.train()(images, targets) for model in (ours, theirs)]
    assert losses[0].keys() == losses[1].keys() == {"classification", "bbox_regression", "bbox_ctrness"}
    for key, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][key])
    for model in (ours, theirs):
        assert (model.score_thresh, model.nms_thresh, model.topk_candidates) == (0.2, 0.6, 1000)
        model.score_thresh = 0.05
    for a, b in zip(ours.eval()(images), theirs.eval()(images), strict=True):
        assert len(a["scores"])
        torch.testing.assert_close(a, b)


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


def test_settings_of_fcos_arrive() -> None:
    detector = fcos(
        4,
        **SMALL,
        returned_layers=(3, 4),
        anchor_sizes=[[12], [20], [40], [80]],
        center_sampling_radius=2.5,
        score_thresh=0.1,
        nms_thresh=0.4,
        detections_per_img=7,
        topk_candidates=9,
    )
    assert detector.anchor_generator.sizes == ((12,), (20,), (40,), (80,))
    assert detector.head.classification_head.cls_logits.out_channels == 4
    assert (detector.center_sampling_radius, detector.score_thresh, detector.nms_thresh) == (2.5, 0.1, 0.4)
    assert (detector.detections_per_img, detector.topk_candidates) == (7, 9)


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


def test_anchor_sizes_and_other_settings_arrive() -> None:
    detector = faster_rcnn(
        4,
        **SMALL,
        returned_layers=(2, 3),
        anchor_sizes=[[16], [32], [64]],
        aspect_ratios=(1.0, 2.0),
        box_head_channels=24,
        box_detections_per_img=7,
        rpn_batch_size_per_image=9,
        box_batch_size_per_image=11,
    )
    assert detector.rpn.anchor_generator.sizes == ((16,), (32,), (64,))
    assert detector.rpn.head.cls_logits.out_channels == 2
    assert detector.roi_heads.box_head.fc7.out_features == 24
    assert detector.roi_heads.detections_per_img == 7
    assert detector.rpn.fg_bg_sampler.batch_size_per_image == 9
    assert detector.roi_heads.fg_bg_sampler.batch_size_per_image == 11
    assert detector.roi_heads.box_predictor.cls_score.out_features == 4
    assert detector.transform.min_size == (64,)
    assert detector.roi_heads.box_roi_pool.featmap_names == ["0", "1"]


@pytest.mark.parametrize("backbone", ["resnet10", "mobilenet_v2", "mobilenet_v3_small"])
@pytest.mark.parametrize(
    ("norm", "kind"), [("frozen", FrozenBatchNorm2d), ("batch", nn.BatchNorm2d), ("sync", nn.SyncBatchNorm)]
)
def test_norms(backbone: str, norm: str, kind: type) -> None:
    detector = retinanet(2, **{**SMALL, "backbone": backbone}, norm=norm)  # type: ignore[arg-type]
    kinds = {type(m) for m in detector.backbone.body.modules() if "BatchNorm" in type(m).__name__}
    assert len(kinds) == 1
    assert issubclass(kinds.pop(), kind)


@pytest.mark.parametrize("backbone", ["resnet10", "mobilenet_v2"])
def test_trainable_layers_count_from_the_deepest(backbone: str) -> None:
    shares = []
    for layers in range(6):
        body = retinanet(
            2, **{**SMALL, "backbone": backbone}, norm="batch", trainable_layers=layers
        ).backbone.body
        flags = [p.requires_grad for p in body.parameters()]
        assert flags == sorted(flags), "frozen parts come first"
        shares.append(sum(flags))
    assert shares[0] == 0
    assert shares == sorted(set(shares)), "each step frees more"
    assert shares[5] == len(flags)


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

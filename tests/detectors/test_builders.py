from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

from defeat.detectors import examine, faster_rcnn, retinanet
from defeat.detectors.backbones import NAMES
from defeat.errors import ConfigError

SMALL = {"backbone": "resnet10", "fpn_channels": 16, "min_size": 64, "max_size": 64}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("resnet34", "resnet101", "resnet152")])
@pytest.mark.parametrize(
    ("build", "strides"), [(faster_rcnn, [4, 8, 16, 32, 64]), (retinanet, [8, 16, 32, 64, 128])]
)
def test_levels_of_every_backbone(name: str, build, strides: list[int]) -> None:  # type: ignore[no-untyped-def]
    anatomy = examine(build(3, backbone=name, fpn_channels=8))
    assert [level.stride for level in anatomy.neck] == strides
    assert {level.channels for level in anatomy.neck} == {8}
    assert [level.stride for level in anatomy.stages] == [s for s in strides if s <= 32]
    assert anatomy.two_stage == (build is faster_rcnn)


@pytest.mark.parametrize(("name", "blocks"), [("resnet34", 16), ("resnet101", 33), ("resnet152", 50)])
def test_depth_of_the_other_resnets(name: str, blocks: int) -> None:
    detector = faster_rcnn(3, backbone=name, fpn_channels=8, box_head_channels=8)
    body = detector.backbone.body
    assert sum(len(body[f"layer{i}"]) for i in range(1, 5)) == blocks


@pytest.mark.parametrize(
    ("ours", "theirs"), [(faster_rcnn, fasterrcnn_resnet50_fpn), (retinanet, retinanet_resnet50_fpn)]
)
def test_parameters_are_named_and_shaped_as_in_torchvision(ours, theirs) -> None:  # type: ignore[no-untyped-def]
    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {k: v.shape for k, v in model.state_dict().items() if "num_batches_tracked" not in k}

    assert shapes(ours(91)) == shapes(theirs(weights=None, weights_backbone=None))


@pytest.mark.parametrize("build", [faster_rcnn, retinanet])
def test_default_anchors_are_those_of_torchvision(build) -> None:  # type: ignore[no-untyped-def]
    if build is faster_rcnn:
        anchors, theirs = build(91, **SMALL).rpn.anchor_generator, [[32], [64], [128], [256], [512]]
    else:
        anchors = build(91, **SMALL).anchor_generator
        theirs = [[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (32, 64, 128, 256, 512)]
    assert [list(s) for s in anchors.sizes] == theirs


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
    assert kinds == {kind}


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
@pytest.mark.parametrize("build", [faster_rcnn, retinanet])
def test_settings_that_cannot_be_are_refused(build, settings: dict, message: str) -> None:  # type: ignore[no-untyped-def,type-arg]
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build(2, **{**SMALL, **settings})

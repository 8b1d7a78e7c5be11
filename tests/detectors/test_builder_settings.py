"""Every setting of every builder arrives: its detectors are those of torchvision's classes, written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small, resnet
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from defeat.config import build as build_node
from defeat.config import compose_config
from defeat.detectors import capture, faster_rcnn, fcos, retinanet
from defeat.detectors.adapted import HalfFrozenBatchNorm2d

Builder = Callable[..., nn.Module]


def settings(of: Any, name: str = "") -> dict[str, str]:
    """Every number, flag and text that a detector and the objects it consists of have as attributes."""
    found: dict[str, str] = {}
    for key, value in vars(of).items():
        if isinstance(value, int | float | str | tuple | list) or "top_n" in key:
            found[f"{name}.{key}"] = repr(value)  # anchors are tensors in a list
        elif type(value).__module__.startswith("torchvision.") or isinstance(
            value, BoxCoder | BoxLinearCoder
        ):
            found |= settings(value, f"{name}.{key}")
    if isinstance(of, nn.Module):
        for key, child in of.named_children():
            found |= settings(child, f"{name}.{key}")
    return found


def infer_scales(detector: nn.Module, strides: Sequence[int]) -> None:
    """Let torchvision infer the scales of a RoIAlign from a square image, where it does so rightly."""
    roi_heads: Any = getattr(detector, "roi_heads", None)
    if roi_heads:
        names = roi_heads.box_roi_pool.featmap_names
        maps = {name: torch.zeros(1, 1, 256 // s, 256 // s) for name, s in zip(names, strides, strict=True)}
        roi_heads.box_roi_pool(maps, [torch.zeros(1, 4)], [(256, 256)])


def parameters(model: nn.Module) -> dict[str, tuple[torch.Size, bool]]:
    return {name: (x.shape, x.requires_grad) for name, x in model.state_dict(keep_vars=True).items()}


def compare(ours: nn.Module, theirs: nn.Module, strides: Sequence[int] = (4, 8, 16, 32)) -> None:
    """Assert that they have the same modules, settings and parameters, of which the same are trained."""
    infer_scales(theirs, strides)
    assert settings(ours) == settings(theirs)
    modules = dict(ours.named_modules())
    assert modules.keys() == dict(theirs.named_modules()).keys()
    assert all(isinstance(modules[name], type(module)) for name, module in theirs.named_modules())
    assert parameters(ours) == parameters(theirs)


def resnet50(**more: Any) -> BackboneWithFPN:
    return resnet_fpn_backbone(backbone_name="resnet50", weights=None, **more)


def one_stage() -> BackboneWithFPN:
    return resnet50(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))


@pytest.mark.parametrize("source", ["builder", "configuration"])
@pytest.mark.parametrize(
    ("build", "config", "theirs"),
    [
        (faster_rcnn, "frcnn_r50", lambda: FasterRCNN(resnet50(), 91)),
        # 100 detections are what COCO counts; torchvision has 300.
        (retinanet, "retinanet_r50", lambda: RetinaNet(one_stage(), 91, detections_per_img=100)),
        (fcos, "fcos_r50", lambda: FCOS(one_stage(), 91)),
    ],
    ids=["faster_rcnn", "retinanet", "fcos"],
)
def test_the_defaults_are_torchvisions(source: str, build: Builder, config: str, theirs: Builder) -> None:
    if source == "configuration":
        build = build_node(compose_config("train", [f"detector@student={config}"]).student.model)
    with torch.device("meta"):
        pair = build(num_classes=91), theirs()
    compare(*pair)


SIZES = {"min_size": (48, 72), "max_size": 120, "size_divisible": 64}
TRUNK = {
    "backbone": "resnet10",
    "returned_layers": (2, 3),
    "trainable_layers": 2,
    "norm": "batch",
    **SIZES,
}


def trunk(channels: int, extra: Any) -> BackboneWithFPN:
    """The backbone of :data:`TRUNK`."""
    net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], norm_layer=nn.BatchNorm2d)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(("layer3", "layer4")))
    return BackboneWithFPN(net, {"layer2": "0", "layer3": "1"}, [128, 256], channels, extra)


def changed_faster_rcnn() -> tuple[nn.Module, nn.Module]:
    numbers = {
        "rpn_pre_nms_top_n_train": 41,
        "rpn_pre_nms_top_n_test": 37,
        "rpn_post_nms_top_n_train": 31,
        "rpn_post_nms_top_n_test": 29,
        "rpn_batch_size_per_image": 23,
        "box_batch_size_per_image": 19,
        "box_score_thresh": 0.01,
        "box_nms_thresh": 0.45,
        "box_detections_per_img": 7,
    }
    ours = faster_rcnn(
        4,
        **TRUNK,
        fpn_channels=16,
        box_head_channels=24,
        anchor_sizes=[[10], [20], [40]],
        aspect_ratios=(0.5, 1.5),
        **numbers,
    )
    theirs = FasterRCNN(
        trunk(16, LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(((10,), (20,), (40,)), ((0.5, 1.5),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        box_head=TwoMLPHead(16 * 7 * 7, 24),
        box_predictor=FastRCNNPredictor(24, 4),
        **SIZES,
        **numbers,
    )
    return ours, theirs


def changed_retinanet() -> tuple[nn.Module, nn.Module]:
    numbers = {"score_thresh": 0.005, "nms_thresh": 0.45, "detections_per_img": 7, "topk_candidates": 9}
    sizes = ((8, 9), (16, 18), (32, 36), (64, 72))
    anchors = AnchorGenerator(sizes, ((0.5, 1.5),) * 4)
    return (
        retinanet(4, **TRUNK, fpn_channels=16, anchor_sizes=sizes, aspect_ratios=(0.5, 1.5), **numbers),
        RetinaNet(trunk(16, LastLevelP6P7(16, 16)), 4, anchor_generator=anchors, **SIZES, **numbers),
    )


def changed_fcos() -> tuple[nn.Module, nn.Module]:
    numbers = {
        "center_sampling_radius": 2.5,
        "score_thresh": 0.01,
        "nms_thresh": 0.4,
        "detections_per_img": 7,
        "topk_candidates": 9,
    }
    sizes = ((12,), (20,), (40,), (80,))
    anchors = AnchorGenerator(sizes, ((1.0,),) * 4)
    return (
        fcos(4, **TRUNK, fpn_channels=64, anchor_sizes=sizes, **numbers),
        FCOS(trunk(64, LastLevelP6P7(64, 64)), 4, anchor_generator=anchors, **SIZES, **numbers),
    )


@pytest.mark.parametrize("both", [changed_faster_rcnn, changed_retinanet, changed_fcos])
def test_every_setting_arrives(both: Callable[[], tuple[nn.Module, nn.Module]]) -> None:
    """With no setting at its default; the same weights give the same losses and detections to the bit."""
    ours, theirs = both()
    compare(ours, theirs, strides=(8, 16))
    ours.load_state_dict(theirs.state_dict())
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    targets = [
        {"boxes": torch.tensor([[4.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.tensor([[10.0, 10.0, 26.0, 30.0]]), "labels": torch.tensor([1])},
    ]
    results: list[dict[str, Tensor]] = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        losses = model(images, targets)
        detections = model.eval()(images)
        assert all(len(one["scores"]) for one in detections)
        results.append(losses | {f"{i} {k}": x for i, one in enumerate(detections) for k, x in one.items()})
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(x, results[1][name]) for name, x in results[0].items())


NORMS = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm}


@pytest.mark.parametrize(
    ("name", "norm"),
    [*(("resnet18", norm) for norm in NORMS), *((f"resnet{depth}", "batch") for depth in (34, 50, 101, 152))],
)
def test_resnets_are_torchvisions(name: str, norm: str) -> None:
    with torch.device("meta"):
        for layers in (0, 3, 4, 5) if name == "resnet18" else (1,):
            ours: Any = faster_rcnn(3, backbone=name, norm=norm, trainable_layers=layers)  # type: ignore[arg-type]
            theirs = resnet_fpn_backbone(
                backbone_name=name, weights=None, norm_layer=NORMS[norm], trainable_layers=layers
            )
            compare(ours.backbone, theirs)


@pytest.mark.parametrize("make", [mobilenet_v2, mobilenet_v3_small, mobilenet_v3_large])
def test_mobilenets_are_torchvisions_and_a_stage_is_its_last_block(make: Builder) -> None:
    features: Any = make().features[:-1].eval()  # the last one belongs to the classifier
    maps: list[Tensor] = [torch.rand(1, 3, 64, 64)]
    with torch.no_grad():
        for block in features:
            maps.append(block(maps[-1]))
    strides = [64 // x.shape[-1] for x in maps[1:]]  # of each block's output: 2 for the stem, 4, ..., 32
    build = partial(faster_rcnn, 3, backbone=make.__name__, fpn_channels=8, box_head_channels=8)
    ours: Any = build(returned_layers=(1, 3, 4), norm="batch").eval()
    body = ours.backbone.body
    body.load_state_dict(features.state_dict())
    assert settings(body) == settings(features)
    with capture(ours) as captured, torch.no_grad():
        ours.backbone(maps[0])
    for x, stride in zip(captured.stages.values(), (4, 16, 32), strict=True):
        assert torch.equal(x, maps[1 + max(i for i, s in enumerate(strides) if s == stride)])
    eps = [module.eps for module in features.modules() if isinstance(module, nn.BatchNorm2d)]
    for layers in range(6):
        with torch.device("meta"):
            body = build(trainable_layers=layers).backbone.body  # type: ignore[attr-defined]
        for block, stride in zip(body.children(), strides, strict=True):
            learns = stride > 2 ** (5 - layers)
            assert all(parameter.requires_grad == learns for parameter in block.parameters())
        assert [norm.eps for norm in body.modules() if isinstance(norm, FrozenBatchNorm2d)] == eps


def test_v2_heads_are_torchvisions() -> None:
    with torch.device("meta"):
        ours = faster_rcnn(91, heads="v2", norm="batch", trainable_layers=5)
        theirs = fasterrcnn_resnet50_fpn_v2(weights_backbone=None)
        frozen: Any = faster_rcnn(3, backbone="resnet10", fpn_channels=16, heads="v2").roi_heads.box_head
    assert [type(m) for m in frozen.modules() if "Norm2d" in type(m).__name__] == [HalfFrozenBatchNorm2d] * 4
    compare(ours, theirs)


@pytest.mark.parametrize("name", ["32x4d", "32x8d", "64x4d"])
def test_resnexts_have_the_widths_of_their_names(name: str) -> None:
    """torchvision has no 32x4d of 101 layers: the formula is that of the ResNeXt paper, for stage 1 to 4."""
    groups, width = map(int, name.removesuffix("d").split("x"))
    with torch.device("meta"):
        body: Any = faster_rcnn(2, backbone=f"resnext101_{name}", stride_in_1x1=True).backbone.body
    for stage, blocks in enumerate((3, 4, 23, 3), 1):
        layer = body[f"layer{stage}"]
        assert len(layer) == blocks
        assert {block.conv2.groups for block in layer} == {groups}
        assert {block.conv2.out_channels for block in layer} == {groups * width * 2 ** (stage - 1)}
        assert layer[0].conv3.out_channels == 256 * 2 ** (stage - 1)


def test_resnet10_has_one_block_a_stage() -> None:
    with torch.device("meta"):
        body: Any = faster_rcnn(3, backbone="resnet10").backbone.body
    assert [len(body[f"layer{stage}"]) for stage in (1, 2, 3, 4)] == [1, 1, 1, 1]

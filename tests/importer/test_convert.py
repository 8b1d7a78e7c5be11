"""Detectors of other frameworks by names and shapes, and weights that come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from defeat.errors import WeightsError
from defeat.importer.convert import convert
from tests.helpers.foreign import BLOCKS, Tensors, build, foreign, randomise, source_of

NAMES = [f"class {i}" for i in range(80)]
META = {"CLASSES": tuple(NAMES)}

ENTRIES = {
    ("faster_rcnn", 50): 295, ("faster_rcnn", 101): 550, ("faster_rcnn", 152): 805,
    ("retinanet", 50): 301, ("retinanet", 152): 811,
}  # fmt: skip
"""Tensors of a file without counters, counted by hand from the frameworks' sources."""

CASES = [
    (framework, family, backbone)
    for framework in ("mmdetection", "detectron2")
    for family in ("faster_rcnn", "retinanet")
    for backbone in BLOCKS
    if family == "faster_rcnn" or backbone in ("resnet50", "resnet152")  # the heads know no backbone
]


def shapes(family: str, backbone: str, framework: str, **more: object) -> tuple[nn.Module, Tensors]:
    """A detector and its weights in another layout, without memory for them."""
    with torch.device("meta"):
        detector = build(family, backbone, 80, **more)
    return detector, foreign(detector, family, backbone, framework, v2="heads" in more)


@pytest.mark.parametrize(("framework", "family", "backbone"), CASES)
def test_every_architecture_is_recognised_and_whole(framework: str, family: str, backbone: str) -> None:
    more = {"extra_levels_from": "c5"} if family == "retinanet" else {}
    detector, tensors = shapes(family, backbone, framework, **more)
    depth = int(backbone.removeprefix("resnet").removeprefix("ext").removeprefix("resnext").partition("_")[0])
    assert len(tensors) == ENTRIES[family, depth]
    imported = convert(source_of(tensors, framework, meta=META))
    wanted = {k: v.shape for k, v in detector.state_dict().items()}
    assert {name: tensor.shape for name, tensor in imported.tensors.items()} == wanted
    assert imported.classes == NAMES
    assert imported.model["backbone"] == backbone
    caffe = framework == "detectron2" and backbone.startswith("resnet")
    assert imported.model["stride_in_1x1"] == caffe
    assert {key: imported.model[key] for key in ("anchors", "strides")} == {
        "anchors": "float",
        "strides": "fixed",
    }
    if family == "retinanet":
        assert imported.model["relu_before_p7"] == (framework == "detectron2")
        assert imported.model["extra_levels_from"] == "c5"
    else:
        assert (imported.model["roi_align"], imported.model["heads"]) == ("aligned", "v1")


@pytest.mark.parametrize("framework", ["mmdetection", "detectron2"])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_models_with_norms_in_pyramid_and_heads(framework: str, backbone: str) -> None:
    detector, tensors = shapes("faster_rcnn", backbone, framework, heads="v2")
    imported = convert(source_of(tensors, framework, meta=META))
    assert imported.tensors.keys() == {
        k for k in detector.state_dict() if not k.endswith("num_batches_tracked")
    }
    assert imported.model["heads"] == "v2"


def test_p6_from_the_pyramid_is_told_by_its_shape() -> None:
    _, tensors = shapes("retinanet", "resnet50", "mmdetection", extra_levels_from="p5")
    model = convert(source_of(tensors, "mmdetection", meta=META)).model
    assert model["extra_levels_from"] == "p5"


@pytest.mark.parametrize("framework", ["mmdetection", "detectron2"])
@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_weights_come_back_bit_for_bit(framework: str, family: str) -> None:
    more = {"extra_levels_from": "c5"} if family == "retinanet" else {"box_head_channels": 16}
    detector = randomise(build(family, "resnet50", 2, fpn_channels=8, **more))
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    tensors = foreign(detector, family, "resnet50", framework)
    source = source_of(tensors, framework, meta={"CLASSES": ("cat", "dog")})
    after = convert(source, style="pytorch").tensors
    assert after.keys() == before.keys()
    new = {"roi_heads.box_predictor.bbox_pred.weight": 4, "roi_heads.box_predictor.bbox_pred.bias": 4}
    for name, tensor in before.items():
        if ".cls_logits." in name and family == "retinanet":  # of background, which these frameworks lack
            tensor = tensor.unflatten(0, (9, 3))
            tensor[:, 0] = -30.0 if name.endswith("bias") else 0.0
            tensor = tensor.flatten(0, 1)
        tensor[: new.get(name, 0)] = 0
        assert torch.equal(after[name], tensor), name


def naive_stem(
    image: torch.Tensor, weight: torch.Tensor, *, bgr: bool, std: tuple[float, ...]
) -> torch.Tensor:
    """(H, W, 3) RGB from 0 to 255 in a framework's convention: padded after normalising, window by window."""
    pixels = image.double()[:, :, [2, 1, 0] if bgr else [0, 1, 2]]
    mean = torch.tensor([103.53, 116.28, 123.675] if bgr else [123.675, 116.28, 103.53], dtype=torch.float64)
    normal = (pixels - mean) / torch.tensor(std, dtype=torch.float64)
    padded = torch.zeros(normal.shape[0] + 6, normal.shape[1] + 6, 3, dtype=torch.float64)
    padded[3:-3, 3:-3] = normal
    rows, columns = (normal.shape[0] + 1) // 2, (normal.shape[1] + 1) // 2
    out = torch.zeros(len(weight), rows, columns, dtype=torch.float64)
    for y in range(rows):
        for x in range(columns):
            window = padded[2 * y : 2 * y + 7, 2 * x : 2 * x + 7]  # (7, 7, 3)
            out[:, y, x] = (weight.double() * window.permute(2, 0, 1)).sum((1, 2, 3))
    return out


@pytest.mark.parametrize(
    ("framework", "style", "bgr", "std"),
    [
        ("detectron2", "auto", True, (1.0, 1.0, 1.0)),
        ("mmdetection", "caffe", True, (1.0, 1.0, 1.0)),
        ("mmdetection", "auto", False, (58.395, 57.12, 57.375)),
        ("mmdetection", "bgr", True, (57.375, 57.12, 58.395)),
    ],
)
def test_the_stem_sees_the_same_pixels(framework: str, style: str, bgr: bool, std: tuple[float, ...]) -> None:
    _, tensors = shapes("faster_rcnn", "resnet50", framework)
    name = "backbone.bottom_up.stem.conv1.weight" if framework == "detectron2" else "backbone.conv1.weight"
    torch.manual_seed(0)
    weight, image = torch.randn(64, 3, 7, 7), torch.randint(0, 256, (17, 22, 3))
    imported = convert(source_of({**tensors, name: weight}, framework, meta=META), style=style)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = ((image / 255 - mean) / deviation).permute(2, 0, 1)
    out = F.conv2d(normal[None], imported.tensors["backbone.body.conv1.weight"], stride=2, padding=3)[0]
    expected = naive_stem(image, weight, bgr=bgr, std=std)
    assert (out - expected).abs().max() < 1e-4 * expected.abs().max()


def test_each_anchor_of_retinanet_keeps_its_class_scores() -> None:
    """Every channel holds a fingerprint of size, shape and class as detectron2 orders them: size first."""
    _, tensors = shapes("retinanet", "resnet50", "detectron2", extra_levels_from="c5")
    marks = [100 * size + 10 * shape for size in range(3) for shape in range(3)]
    classes = torch.tensor([mark + k for mark in marks for k in range(5)], dtype=torch.float32)
    sides = torch.tensor([mark + side for mark in marks for side in range(4)], dtype=torch.float32)
    tensors["head.cls_score.bias"], tensors["head.bbox_pred.bias"] = classes, sides
    tensors["head.cls_score.weight"] = torch.zeros(45, 256, 3, 3)
    imported = convert(source_of(tensors, "detectron2", meta={"CLASSES": tuple("abcde")})).tensors
    # torchvision: A anchors of K + 1 values, shapes in the outer loop
    scores = imported["head.classification_head.cls_logits.bias"].reshape(3, 3, 6)
    boxes = imported["head.regression_head.bbox_reg.bias"].reshape(3, 3, 4)
    for shape in range(3):
        for size in range(3):
            assert scores[shape, size].tolist() == [-30, *(100 * size + 10 * shape + k for k in range(5))]
            assert boxes[shape, size].tolist() == [100 * size + 10 * shape + side for side in range(4)]


def test_what_is_missing_left_over_or_of_another_shape_is_listed() -> None:
    _, tensors = shapes("faster_rcnn", "resnet50", "mmdetection")
    without = {k: v for k, v in tensors.items() if k != "backbone.layer3.5.conv2.weight"}
    for wrong, told in (
        (without, "3,4,5,3 blocks"),
        ({k: v for k, v in tensors.items() if k != "neck.fpn_convs.0.conv.bias"}, "layer_blocks.0.0.bias"),
        ({**tensors, "roi_head.bbox_head.fc_iou.weight": torch.zeros(1)}, "fc_iou"),
        ({**tensors, "rpn_head.rpn_reg.bias": torch.zeros(3)}, r"rpn.head.bbox_pred.bias \(3, not 12\)"),
        ({k: v for k, v in tensors.items() if k != "roi_head.bbox_head.fc_reg.bias"}, "bbox_pred.bias"),
    ):
        with pytest.raises(WeightsError, match=told):
            convert(source_of(wrong, "mmdetection", meta=META))


def test_the_path_is_no_part_of_what_is_imported(tmp_path: Path) -> None:
    _, tensors = shapes("faster_rcnn", "resnet50", "mmdetection")
    name = str(tmp_path / "faster_rcnn_r50_caffe_fpn_1x_coco.pth")
    assert convert(source_of(tensors, "mmdetection", name, META)).model["stride_in_1x1"]

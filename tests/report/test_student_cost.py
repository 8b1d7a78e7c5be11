"""FLOPs by hand: 2 x output cells x output channels x kernel cells x input channels, layer by layer."""

from typing import Any

import pytest
import torch
from torch import nn

from defeat.config import compose_config, to_plain
from defeat.errors import ConfigError, WeightsError
from defeat.report.student_cost import count, student_cost


def student(*overrides: str) -> dict[str, Any]:
    config = compose_config("train", ["run_dir=.", "data.root=.", *overrides])
    return to_plain(config)["student"]


def conv(side: int, out: int, into: int, kernel: int) -> int:
    return 2 * side * side * out * into * kernel * kernel


def resnet10(side: int) -> int:
    """Up to stage 3: stem, then a BasicBlock a stage, with a 1x1 shortcut where channels change."""
    flops = conv(side // 2, 64, 3, 7) + 2 * conv(side // 4, 64, 64, 3)
    for at, out, into in ((side // 8, 128, 64), (side // 16, 256, 128)):
        flops += conv(at, out, into, 3) + conv(at, out, out, 3) + conv(at, out, into, 1)
    return flops


SMALL = [
    *(
        "student.model.backbone=resnet10",
        "student.model.fpn_channels=8",
        "student.model.returned_layers=[1,2,3]",
    ),
    *("student.model.min_size=64", "student.model.max_size=64", "student.model.anchor_sizes=null"),
]


def test_a_two_stage_detector():
    head = ["student.model.box_head_channels=16", "student.model.rpn_post_nms_top_n_test=50"]
    cost = student_cost(student("detector@student=frcnn_r18", *SMALL, *head), ["a", "b", "c"])
    levels = [16, 8, 4]  # strides 4, 8, 16 of 64 pixels; stride 32 on top is pooled, not convolved
    flops = resnet10(64)
    flops += sum(conv(side, 8, into, 1) for side, into in zip(levels, (64, 128, 256), strict=True))
    flops += sum(conv(side, 8, 8, 3) for side in levels)
    for side in (*levels, 2):  # the RPN's head: 3x3, then 1 score and 4 distances for each of 3 anchors
        flops += conv(side, 8, 8, 3) + conv(side, 3, 8, 1) + conv(side, 12, 8, 1)
    flops += 50 * 2 * (8 * 7 * 7 * 16 + 16 * 16 + 16 * 4 + 16 * 16)  # two layers, 4 scores, 4 boxes of 4
    assert (cost.flops, cost.height, cost.width) == (flops, 64, 64)


def test_a_one_stage_detector():
    cost = student_cost(student("detector@student=retinanet_r18", *SMALL), ["a", "b"])
    levels = [16, 8, 4]
    flops = resnet10(64)
    flops += sum(conv(side, 8, into, 1) for side, into in zip(levels, (64, 128, 256), strict=True))
    flops += sum(conv(side, 8, 8, 3) for side in levels) + conv(2, 8, 8, 3) + conv(1, 8, 8, 3)
    for side in (*levels, 2, 1):  # two towers of 4 convolutions, then 3 scores and 4 distances of 9 anchors
        flops += 8 * conv(side, 8, 8, 3) + conv(side, 9 * 3, 8, 3) + conv(side, 9 * 4, 8, 3)
    assert cost.flops == flops


def test_the_test_size_is_the_last_one_padded_and_the_weights_are_not_read():
    sizes = ["student.model.min_size=[480,600]", "student.model.max_size=1000", "student.weights=none.pth"]
    cost = student_cost(student("detector@student=frcnn_mnv2", *sizes), ["a"])
    assert (cost.height, cost.width) == (608, 1024)


@pytest.mark.parametrize("choice", ["frcnn_mnv3s", "retinanet_mnv2", "fcos_mnv2", "torchvision_frcnn_r50_v2"])
def test_parameters_are_those_of_the_built_detector(choice):
    cost = student_cost(student(f"detector@student={choice}"), ["a", "b"])
    assert cost.parameters > 1e6
    assert cost.flops > 1e9
    assert (cost.height, cost.width) == (800, 1344)


def test_a_real_device_gives_the_same():
    from defeat.detectors import retinanet

    model = retinanet(3, backbone="resnet10", fpn_channels=8, min_size=64, max_size=64).eval()
    with torch.device("meta"):
        other = retinanet(3, backbone="resnet10", fpn_channels=8, min_size=64, max_size=64).eval()
    assert count(model) == count(other)
    assert count(model).parameters == sum(p.numel() for p in model.parameters())


def test_what_cannot_be_counted_is_said():
    with pytest.raises(ConfigError, match=r"the FLOPs of Linear cannot be counted \(.*transform"):
        count(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="nowhere"):
        student_cost({"_target_": "nowhere.to_be_found"}, ["a"], trust=True)


def test_a_run_of_a_stranger_calls_nothing_of_its_own_choice(tmp_path):
    node = {
        "_target_": "pathlib.Path.mkdir",
        "self": {"_target_": "pathlib.Path", "_args_": [str(tmp_path / "x")]},
    }
    with pytest.raises(WeightsError, match="--trust"):
        student_cost(node, ["a"])
    assert not any(tmp_path.iterdir())

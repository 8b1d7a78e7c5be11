"""Detectors of random weights that find many objects, and what torchvision finds with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from defeat.detectors import faster_rcnn, fcos, retinanet
from defeat.export.student import TrainedStudent
from defeat.types import Prediction

CLASSES = ("dog", 'a "b"\n', "käfer")
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"returned_layers": [2, 3], "box_head_channels": 32, "rpn_post_nms_top_n_test": 200},
    "retinanet": {"returned_layers": [4]},
    "fcos": {"returned_layers": [4]},
}


def detector(family: str, **more: Any) -> nn.Module:
    """A detector of random weights which finds many objects of all classes."""
    settings = {"backbone": "resnet10", "fpn_channels": 64, "min_size": 96, "max_size": 160}
    model = FAMILIES[family](len(CLASSES) + 1, **settings | SETTINGS[family] | more).eval()
    wake(model)
    return model


def wake(model: nn.Module) -> None:
    """Give the heads weights with which they find many objects."""
    for name, value in model.requires_grad_(False).named_parameters():
        if name.startswith(("head", "rpn.head")) or "predictor" in name:
            even = min(0.05, 1.21 / value[0].numel() ** 0.5)  # scores of wide heads would all round to 1
            nn.init.normal_(value, std=1.0 if "cls_score" in name else even)


def student(model: nn.Module) -> TrainedStudent:
    return TrainedStudent(model, CLASSES, (3, 7, 9), Path("best.ckpt"), "0" * 64, None)


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    """Smooth random pictures (3, H, W) in [0, 1]."""
    return [interpolate(torch.rand(1, 3, 7, 9), size, mode="bicubic")[0].clamp(0, 1) for size in sizes]


def expected(model: nn.Module, images: list[Tensor]) -> list[Prediction]:
    """What torchvision finds without resizing, but for the background that one-stage detectors may return."""
    transform = cast(Any, model).transform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "resize", lambda image, target: (image, target))
        found = model(images)
    return [{k: v[each["labels"] > 0] for k, v in each.items()} for each in found]


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The inputs of a graph: padding of any value on the right and at the bottom, sides multiples of 32."""
    height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (1, 2))
    batch = torch.full((len(images), 3, height, width), 0.7)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, torch.tensor([image.shape[1:] for image in images])


class Tally:
    """Counts the detections that both sides have: 0.01 pixels and 1e-4 apart at most, of the same label.

    Rounding may decide a tie otherwise, in one of hundreds; every mistake moves many.
    """

    def __init__(self) -> None:
        self.same = self.others = 0

    def add(self, found: list[Any], expected: Prediction) -> None:
        boxes, scores, labels = (torch.as_tensor(part) for part in found)
        close = (boxes[:, None] - expected["boxes"]).abs().amax(-1) < 1e-2
        close &= (scores[:, None] - expected["scores"]).abs() < 1e-4
        close &= labels[:, None] == expected["labels"]
        same = min(int(close.any(0).sum()), int(close.any(1).sum()))
        self.same += same
        self.others += len(scores) + len(expected["scores"]) - 2 * same

    def check(self, least: int = 200) -> None:
        assert self.same > least
        assert self.others <= 0.01 * self.same, self.others


def even_out(model: nn.Module) -> None:
    """Scale what enters the pyramid, which vanishes or explodes in deep backbones of random weights.

    The logits are scaled too: many scores that round to the same number leave open which are the best.
    """

    def scale(layer: nn.Conv2d | nn.Linear, inputs: Any, output: Tensor) -> Tensor:
        hooks.pop(layer).remove()  # a head is called for each level
        layer.weight.div_(output.std() / 2)
        return 2 * output / output.std()

    fpn = cast(Any, model).backbone.fpn
    layers = [block[0] for block in fpn.inner_blocks]
    ends = "p6", "cls_logits", "cls_score"
    layers += [layer for name, layer in model.named_modules() if name.endswith(ends)]
    hooks = {layer: layer.register_forward_hook(scale) for layer in layers}
    with torch.no_grad():
        model(pictures((160, 224)))

"""A detector pools from its maps at their strides, whatever image comes first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, roi_align

from defeat.detectors import create_detector, faster_rcnn
from tests.helpers.narrow import NARROW

SIDE = 64
LONG = torch.zeros(3, 3, SIDE)
"""Padded from 3 rows to 32: the map of stride 4 has 8 rows, and torchvision takes its stride for 1/2."""
STRIDES = {"0": 4, "1": 8}
SIZE = {"min_size": SIDE, "max_size": SIDE}


class Pyramid(nn.Module):
    """Maps of strides 4 and 8 by name."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.finest = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        finest = self.finest(x)
        return {"0": finest, "1": nn.functional.max_pool2d(finest, 2)}


class OneMap(Pyramid):
    """A backbone without a pyramid, as torchvision's tutorial has."""

    def forward(self, x: Tensor) -> Tensor:
        return self.finest(x)  # type: ignore[no-any-return]


class Subclass(FasterRCNN):
    """Somebody's own."""


class Pool(MultiScaleRoIAlign):
    """Somebody's own."""


class Wrapper(nn.Module):
    """A detector inside of another module."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, *inputs: Any) -> Any:
        return self.detector(*inputs)


def rcnn(kind: type[FasterRCNN], backbone: type[nn.Module], num_classes: int, **more: Any) -> FasterRCNN:
    levels = 1 if backbone is OneMap else 2
    anchors = AnchorGenerator(((16,), (32,))[:levels], ((1.0,),) * levels)
    more.setdefault("box_roi_pool", MultiScaleRoIAlign(["0", "1"][:levels], 7, 2))
    return kind(backbone(), num_classes, rpn_anchor_generator=anchors, **SIZE, **more)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "of this project": partial(faster_rcnn, backbone=NARROW, returned_layers=(1, 2), **SIZE),
    "pyramid": partial(rcnn, FasterRCNN, Pyramid),
    "one map": partial(rcnn, FasterRCNN, OneMap),
    "masks": partial(rcnn, MaskRCNN, Pyramid),
    "subclass": partial(rcnn, Subclass, Pyramid, box_roi_pool=Pool(["0", "1"], 7, 2)),
    "wrapped": lambda num_classes: Wrapper(rcnn(FasterRCNN, Pyramid, num_classes)),
}


def pools(model: nn.Module) -> list[MultiScaleRoIAlign]:
    return [module for module in model.modules() if isinstance(module, MultiScaleRoIAlign)]


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("training", [False, True])
def test_a_long_image_first_leaves_the_scales_of_the_strides(builder: str, training: bool) -> None:
    model = create_detector(BUILDERS[builder], ["a"]).model.train(training)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    empty["masks"] = torch.zeros(0, *LONG.shape[1:], dtype=torch.uint8)
    model([LONG], *[[empty]] * training)
    levels = {name: torch.randn(1, 5, 1024 // stride, 1024 // stride) for name, stride in STRIDES.items()}
    assert pools(model)
    for pool in pools(model):
        for name in levels.keys() & set(pool.featmap_names):
            side = 20.0 * STRIDES[name] if len(pool.featmap_names) > 1 else 100.0
            box = torch.tensor([[8.0, 12.0, 8.0 + side, 12.0 + side]])  # of this level
            wanted = roi_align(levels[name], [box], pool.output_size, 1 / STRIDES[name], pool.sampling_ratio)
            assert pool(levels, [box], [(1024, 1024)]).equal(wanted)


def test_without_that_torchvision_keeps_the_scale_of_the_long_image() -> None:
    model = rcnn(FasterRCNN, Pyramid, 2).eval()
    model([LONG])
    assert model.roi_heads.box_roi_pool.scales == [2.0, 1.0]


def test_a_backbone_that_takes_no_blank_image_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Pyramid):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            assert x.shape[-1] == SIDE, "another size"
            return super().forward(x)

    with caplog.at_level(logging.WARNING):
        model = create_detector(partial(rcnn, FasterRCNN, Picky), ["a"]).model
    assert "cannot compute a blank image (another size" in caplog.text
    assert pools(model)[0].scales is None

"""Anchors, strides, P6 and P7, and RoIAlign as torchvision has them, and as detectron2 and mmdetection do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from defeat.detectors import capture, faster_rcnn, fcos, retinanet
from defeat.detectors.adapted import AlignedRoIAlign, ParallelRoIAlign
from defeat.errors import ConfigError
from tests.helpers.narrow import NARROW

SMALL: dict[str, Any] = {"backbone": NARROW, "fpn_channels": 8}
WIDE: dict[str, Any] = {**SMALL, "fpn_channels": 64}
FOREIGN: dict[str, Any] = {"anchors": "float", "strides": "fixed"}


def laid_anchors(detector: Any, shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[Tensor]:
    """Anchors (h, w, A, 4) of each level, on maps in bfloat16 of a batch of this size."""
    generator = detector.rpn.anchor_generator if hasattr(detector, "rpn") else detector.anchor_generator
    maps = [torch.zeros(1, 1, *shape, dtype=torch.bfloat16) for shape in shapes]
    (flat,) = generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)
    assert flat.dtype == torch.float32
    per_cell = generator.num_anchors_per_location()
    parts = flat.split([h * w * n for (h, w), n in zip(shapes, per_cell, strict=True)])
    return [x.reshape(h, w, -1, 4) for x, (h, w) in zip(parts, shapes, strict=True)]


@pytest.mark.parametrize(
    ("build", "settings", "anchor", "half_sides"),
    [
        (faster_rcnn, {}, 0, (23, 11)),
        (faster_rcnn, FOREIGN, 0, (22.6274, 11.3137)),
        (retinanet, {}, 1, (28, 14)),
        (retinanet, FOREIGN, 1, (28.509, 14.254)),
        (retinanet, {}, 2, (35, 18)),
        (retinanet, FOREIGN, 2, (35.919, 17.959)),
    ],
)
def test_the_anchors_of_the_first_cell(
    build: Callable[..., nn.Module], settings: dict[str, Any], anchor: int, half_sides: tuple[float, float]
) -> None:
    """By hand: a ratio of 0.5 at sizes of 32 and, for RetinaNet, of 32 * 2^(1/3) and 32 * 2^(2/3)."""
    x, y = half_sides
    stride = 4 if build is faster_rcnn else 8
    shapes = [(256 // stride >> level,) * 2 for level in range(5)]
    first = laid_anchors(build(2, **SMALL, **settings), shapes, (256, 256))[0][0, 0, anchor]
    assert first.tolist() == pytest.approx([-x, -y, x, y], abs=1e-3)


@pytest.mark.parametrize(
    ("build", "steps"),
    [
        # 800 // 13, 1088 // 17 of P6; 800 // 7, 1088 // 9 of P7
        (faster_rcnn, [(4, 4), (8, 8), (16, 16), (32, 32), (61, 64)]),
        (retinanet, [(8, 8), (16, 16), (32, 32), (61, 64), (114, 120)]),
        (fcos, [(8, 8), (16, 16), (32, 32), (61, 64), (114, 120)]),
    ],
)
def test_the_strides_of_a_batch_of_800_x_1088(
    build: Callable[..., nn.Module], steps: list[tuple[int, int]]
) -> None:
    first = 4 if build is faster_rcnn else 8
    of_levels = [first << level for level in range(5)]
    shapes = [(math.ceil(800 / stride), math.ceil(1088 / stride)) for stride in of_levels]
    for strides, wanted in (("derived", steps), ("fixed", [(s, s) for s in of_levels])):
        laid = laid_anchors(build(2, **WIDE, strides=strides), shapes, (800, 1088))
        for (h, w), (down, right), x in zip(shapes, wanted, laid, strict=True):
            rows, columns = torch.arange(h) * down, torch.arange(w) * right
            centres = (x[..., :2] + x[..., 2:])[:, :, 0] / 2  # (h, w, 2)
            assert centres[..., 0].equal(columns.expand(h, w).float())
            assert centres[..., 1].equal(rows[:, None].expand(h, w).float())


@pytest.mark.parametrize("build", [retinanet, fcos])
@pytest.mark.parametrize(("source", "relu"), [("p5", True), ("p5", False), ("c5", True), ("c5", False)])
def test_p6_and_p7(build: Callable[..., nn.Module], source: str, relu: bool) -> None:
    """C5 of the narrow network has as many channels as the pyramid, by which torchvision would go."""
    torch.manual_seed(0)
    detector: Any = build(2, **WIDE, extra_levels_from=source, relu_before_p7=relu)
    levels = detector.backbone.fpn.extra_blocks
    with capture(detector) as captured, torch.no_grad():
        detector.backbone(torch.rand(1, 3, 96, 160))
    below = list((captured.stages if source == "c5" else captured.neck).values())[2]  # (1, 64, 3, 5)
    p6 = F.conv2d(below, levels.p6.weight, levels.p6.bias, stride=2, padding=1)
    assert bool((p6 < 0).any())
    p7 = F.conv2d(p6.clamp(min=0) if relu else p6, levels.p7.weight, levels.p7.bias, stride=2, padding=1)
    assert list(captured.neck) == ["0", "1", "2", "p6", "p7"]
    assert captured.neck["p6"].equal(p6)
    assert captured.neck["p7"].equal(p7)


def naive_roi_align(level: Tensor, box: Sequence[float], stride: int) -> Tensor:
    """Aligned RoIAlign (C, 7, 7) of a map (C, H, W), by loops: as many samples a cell as it has pixels."""
    x1, y1, x2, y2 = (side / stride - 0.5 for side in box)
    bins = [(y2 - y1) / 7, (x2 - x1) / 7]
    counts = [max(1, math.ceil(size)) for size in bins]
    out = torch.zeros(level.shape[0], 7, 7)
    for row in range(7):
        for column in range(7):
            for i in range(counts[0]):
                for j in range(counts[1]):
                    y = y1 + (row + (i + 0.5) / counts[0]) * bins[0]
                    x = x1 + (column + (j + 0.5) / counts[1]) * bins[1]
                    out[:, row, column] += bilinear(level, y, x) / (counts[0] * counts[1])
    return out


def bilinear(level: Tensor, y: float, x: float) -> Tensor:
    height, width = level.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(level.shape[0])
    total = torch.zeros(level.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    for row in range(height):
        for column in range(width):
            weight = max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x))
            if weight:
                total += weight * level[:, row, column]
    return total


BOXES = [[3.0, 2.0, 30.0, 41.0], [-9.0, 5.0, 20.0, 70.0], [20.0, 20.0, 21.0, 22.5], [0.0, 0.0, 60.0, 60.0]]


def pool_of(**settings: Any) -> Any:
    detector: Any = faster_rcnn(2, **SMALL, returned_layers=(1, 2), **settings)
    return detector.roi_heads.box_roi_pool


def test_aligned_roi_align_is_that_of_loops() -> None:
    """A box beyond the border, one smaller than a cell, which the unaligned one would enlarge."""
    torch.manual_seed(0)
    maps = {"0": torch.randn(1, 5, 16, 16), "1": torch.randn(1, 5, 8, 8)}
    pooled = pool_of(roi_align="aligned")(maps, [torch.tensor(BOXES)], [(64, 64)])
    wanted = torch.stack([naive_roi_align(maps["0"][0], box, 4) for box in BOXES])
    torch.testing.assert_close(pooled, wanted, atol=1e-5, rtol=1e-5)
    large = [0.0, 0.0, 448.0, 448.0]  # of the coarser map
    pooled = pool_of(roi_align="aligned")(maps, [torch.tensor([large])], [(64, 64)])
    torch.testing.assert_close(pooled[0], naive_roi_align(maps["1"][0], large, 8), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("roi_align", "beside"), [("aligned", 0.0), ("torchvision", 0.5)])
def test_where_a_ramp_is_pooled(roi_align: str, beside: float) -> None:
    """A map that says where its pixels lie in the image: the mean of what is pooled is the box's centre."""
    at = (torch.arange(40) + 0.5) * 4
    maps = {
        "0": torch.stack([at.expand(40, 40), at[:, None].expand(40, 40)])[None],
        "1": torch.zeros(1, 2, 20, 20),
    }
    boxes = torch.tensor([[30.0, 50.0, 61.5, 83.0], [20.0, 25.0, 120.0, 90.0]])
    pooled = pool_of(roi_align=roi_align)(maps, [boxes], [(160, 160)]).mean((2, 3))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(pooled, centres + 4 * beside, atol=1e-3, rtol=0)


def test_the_builders_take_their_choices() -> None:
    assert type(pool_of()) is ParallelRoIAlign
    assert type(pool_of(roi_align="aligned")) is AlignedRoIAlign
    unknown: list[tuple[Callable[..., nn.Module], str]] = [
        (faster_rcnn, "anchors"),
        (faster_rcnn, "roi_align"),
        (retinanet, "strides"),
        (fcos, "extra_levels_from"),
    ]
    for build, key in unknown:
        with pytest.raises(ConfigError, match=f"{key}=exact: choose one of "):
            build(2, **WIDE, **{key: "exact"})

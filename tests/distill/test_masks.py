from __future__ import annotations

import math

import pytest
import torch
from golden import BOXES, SHAPES, STRIDES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defeat.distill import box_cells, box_level, full_mask, gaussian_mask, object_mask, shared_mask

MASKS = [object_mask, gaussian_mask]


def naive_cells(box: list[float], stride: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Transcription of the published rule for one box, with the clamp to the map."""
    x1, y1, x2, y2 = (int(v / stride) for v in box)
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    x2, y2 = min(max(x2, 0), width), min(max(y2, 0), height)
    if x1 >= x2 or y1 >= y2:
        return x1, y1, x1 + 1, y1 + 1
    return x1, y1, x2, y2


def naive_level(box: list[float], first_stride: int, levels: int, cells: float) -> int:
    size = math.sqrt(max(0.0, (box[2] - box[0] + 1) * (box[3] - box[1] + 1)))
    return min(max(math.floor(math.log2(size / (cells * first_stride) + 1e-6)), 0), levels - 1)


def naive_mask(boxes: list[Tensor], gaussian: bool, cells: float = 14.0) -> list[Tensor]:
    masks = []
    for level, (stride, (h, w)) in enumerate(zip(STRIDES, SHAPES, strict=True)):
        mask = torch.zeros(len(boxes), h, w)
        for image, image_boxes in enumerate(boxes):
            for box in image_boxes.tolist():
                if naive_level(box, STRIDES[0], len(STRIDES), cells) != level:
                    continue
                x1, y1, x2, y2 = naive_cells(box, stride, h, w)
                for y in range(y1, y2):
                    for x in range(x1, x2):
                        value = 1.0
                        if gaussian and (x2 - x1, y2 - y1) != (1, 1):
                            a, b = (x2 - x1) / 2, (y2 - y1) / 2
                            value = math.exp(-0.5 * (((x - x1 - a) / a) ** 2 + ((y - y1 - b) / b) ** 2))
                        mask[image, y, x] = max(mask[image, y, x].item(), value)
        masks.append(mask)
    return masks


@st.composite
def box_lists(draw: st.DrawFn) -> list[Tensor]:
    """Two images of 0-6 boxes: tiny, huge, on the border, and reaching or lying outside."""

    def box() -> list[float]:
        x, y = draw(st.floats(-40, 350, width=32)), draw(st.floats(-40, 290, width=32))
        w, h = draw(st.floats(0.125, 400, width=32)), draw(st.floats(0.125, 300, width=32))
        return [x, y, x + w, y + h]

    counts = draw(st.lists(st.integers(0, 6), min_size=2, max_size=2))
    return [torch.tensor([box() for _ in range(n)], dtype=torch.float32).reshape(-1, 4) for n in counts]


def test_object_mask_golden_sums() -> None:
    sums = [m.sum((1, 2)).tolist() for m in object_mask(BOXES, SHAPES, STRIDES)]
    assert sums == [[91, 256], [396, 198], [285, 0], [0, 0], [0, 0]]


def test_gaussian_mask_golden_sums() -> None:
    sums = torch.stack([m.sum((1, 2)) for m in gaussian_mask(BOXES, SHAPES, STRIDES)])
    expected = [[66.540412, 187.069838], [289.55588, 144.565499], [208.29081, 0], [0, 0], [0, 0]]
    torch.testing.assert_close(sums, torch.tensor(expected), atol=5e-5, rtol=0)


def test_backbone_mask_golden_sums() -> None:
    (mask,) = shared_mask(BOXES, SHAPES[:1], STRIDES[:1])
    assert mask.sum((1, 2)).tolist() == [4697, 1026]


def test_backbone_mask_is_resized_by_nearest() -> None:
    fine, *coarse = shared_mask(BOXES, SHAPES[:4], STRIDES[:4])
    for mask, stride in zip(coarse, STRIDES[1:4], strict=True):
        step = stride // 4
        assert torch.equal(mask, fine[:, ::step, ::step])


def test_backbone_mask_is_drawn_at_stride_4_whatever_the_finest_stage() -> None:
    whole = shared_mask(BOXES, SHAPES[:4], STRIDES[:4])
    part = shared_mask(BOXES, SHAPES[2:4], STRIDES[2:4])
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], part, strict=True))


@settings(max_examples=60, deadline=None)
@given(box_lists())
def test_masks_equal_the_loops(boxes: list[Tensor]) -> None:
    for mask, gaussian in ((object_mask, False), (gaussian_mask, True)):
        for ours, naive in zip(mask(boxes, SHAPES, STRIDES), naive_mask(boxes, gaussian), strict=True):
            torch.testing.assert_close(ours, naive, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(box_lists())
def test_every_box_marks_its_own_level_only(boxes: list[Tensor]) -> None:
    for image in boxes:
        for box in image:
            masks = object_mask([box[None]], SHAPES, STRIDES)
            marked = [i for i, m in enumerate(masks) if m.any()]
            assert marked == box_level(box[None], STRIDES[0], len(STRIDES)).tolist()


def test_order_of_boxes_does_not_matter() -> None:
    for mask in MASKS:
        forward = mask(BOXES, SHAPES, STRIDES)
        backward = mask([b.flip(0) for b in BOXES], SHAPES, STRIDES)
        assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))


def test_images_without_boxes_are_blank() -> None:
    none = torch.empty(0, 4)
    for mask in (*MASKS, shared_mask):
        assert not any(m.any() for m in mask([none, none], SHAPES, STRIDES))
        assert not any(m[1].any() for m in mask([BOXES[0], none], SHAPES, STRIDES))


def test_full_mask_is_ones() -> None:
    masks = full_mask(BOXES, SHAPES, STRIDES)
    assert [tuple(m.shape) for m in masks] == [(2, *shape) for shape in SHAPES]
    assert all((m == 1).all() for m in masks)


@pytest.mark.parametrize(("side", "level"), [(10, 0), (111, 0), (112, 1), (223, 1), (224, 2), (5000, 4)])
def test_level_of_a_square_box(side: int, level: int) -> None:
    # The rule adds a pixel to each side: a box of side - 1 counts as side.
    box = torch.tensor([[0.0, 0, side - 1, side - 1]])
    assert box_level(box, 4, 5).item() == level


def test_level_goes_by_pixels_not_by_the_number_of_levels() -> None:
    box = torch.tensor([[0.0, 0, 299, 299]])  # stride 16 by the rule
    assert box_level(box, 4, 5).item() == 2
    assert box_level(box, 8, 4).item() == 1


@pytest.mark.parametrize(("side", "level"), [(20, 0), (63, 0), (64, 1), (127, 1), (128, 2), (600, 4)])
def test_retinanet_levels_follow_its_anchors(side: int, level: int) -> None:
    box = torch.tensor([[0.0, 0, side - 1, side - 1]])
    assert box_level(box, 8, 5, cells=4).item() == level


def test_cells_of_a_box_on_the_far_border_stay_on_the_map() -> None:
    boxes = torch.tensor(
        [[320.0, 256, 320, 256], [319.9, 255.9, 320, 256], [400, 300, 500, 400], [-9, -9, -1, -1]]
    )
    cells = box_cells(boxes, 4, 64, 80)
    assert cells.tolist() == [[79, 63, 80, 64], [79, 63, 80, 64], [79, 63, 80, 64], [0, 0, 1, 1]]

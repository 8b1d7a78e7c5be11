from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from defeat.distill import (
    Grids,
    box_cells,
    box_level,
    fine_grained_mask,
    full_mask,
    gaussian_mask,
    masks,
    object_mask,
    random_mask,
    shared_mask,
)
from defeat.distill.masks import Mask
from defeat.errors import ConfigError
from tests.helpers import naive
from tests.helpers.golden import BOXES, SHAPES, STRIDES


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
    sums = [m.sum((1, 2)).tolist() for m in object_mask(Grids(BOXES, SHAPES, STRIDES))]
    assert sums == [[91, 256], [396, 198], [285, 0], [0, 0], [0, 0]]


def test_gaussian_mask_golden_sums() -> None:
    sums = torch.stack([m.sum((1, 2)) for m in gaussian_mask(Grids(BOXES, SHAPES, STRIDES))])
    expected = [[66.540412, 187.069838], [289.55588, 144.565499], [208.29081, 0], [0, 0], [0, 0]]
    torch.testing.assert_close(sums, torch.tensor(expected), atol=5e-5, rtol=0)


def test_backbone_mask_golden_sums() -> None:
    (mask,) = shared_mask(Grids(BOXES, SHAPES[:1], STRIDES[:1]))
    assert mask.sum((1, 2)).tolist() == [4697, 1026]


def test_backbone_mask_is_drawn_at_stride_4_whatever_the_finest_stage() -> None:
    whole = shared_mask(Grids(BOXES, SHAPES[:4], STRIDES[:4]))
    part = shared_mask(Grids(BOXES, SHAPES[2:4], STRIDES[2:4]))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], part, strict=True))


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(box_lists())
def test_masks_in_float32_equal_the_loops(boxes: list[Tensor]) -> None:
    plain = [own.tolist() for own in boxes]
    for mask, loops in ((object_mask, naive.object_mask), (gaussian_mask, naive.gaussian_mask)):
        for ours, theirs in zip(
            mask(Grids(boxes, SHAPES, STRIDES)), loops(plain, SHAPES, STRIDES), strict=True
        ):
            torch.testing.assert_close(ours, torch.tensor(theirs), atol=1e-6, rtol=1e-5)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(box_lists())
def test_every_box_marks_its_own_level_only(boxes: list[Tensor]) -> None:
    for image in boxes:
        for box in image:
            masks = object_mask(Grids([box[None]], SHAPES, STRIDES))
            marked = [i for i, m in enumerate(masks) if m.any()]
            assert marked == box_level(box[None], STRIDES[0], len(STRIDES)).tolist()


@pytest.mark.parametrize(("side", "level"), [(10, 0), (111, 0), (112, 1), (223, 1), (224, 2), (5000, 4)])
def test_level_of_a_square_box(side: int, level: int) -> None:
    # The rule adds a pixel to each side: a box of side - 1 counts as side.
    box = torch.tensor([[0.0, 0, side - 1, side - 1]])
    assert box_level(box, 4, 5).item() == level


def test_cells_of_a_box_on_the_far_border_stay_on_the_map() -> None:
    boxes = torch.tensor(
        [[320.0, 256, 320, 256], [319.9, 255.9, 320, 256], [400, 300, 500, 400], [-9, -9, -1, -1]]
    )
    cells = box_cells(boxes, 4, 64, 80)
    assert cells.tolist() == [[79, 63, 80, 64], [79, 63, 80, 64], [79, 63, 80, 64], [0, 0, 1, 1]]


def test_random_regions_are_as_large_as_the_objects_and_elsewhere() -> None:
    grids = Grids(BOXES, SHAPES, STRIDES)
    torch.manual_seed(4)
    first, second = random_mask(grids), random_mask(grids)
    torch.manual_seed(4)
    again = random_mask(grids)
    for level, objects in enumerate(object_mask(grids)):
        cells = objects.sum((1, 2))
        for mask in (first[level], second[level]):
            assert mask.sum((1, 2)).tolist() == cells.tolist()
            # By chance they share the squared part of the map that either covers.
            shared, chance = (mask * objects).sum((1, 2)), cells.square() / objects[0].numel()
            assert ((shared - chance).abs() <= 5 * chance.sqrt()).all()
        assert torch.equal(first[level], again[level])
        assert torch.equal(first[level], second[level]) == (not cells.any())


def test_random_regions_reach_every_cell_alike() -> None:
    grids = Grids([torch.tensor([[0.0, 0, 8, 8]])], [(4, 4)], [4])  # 4 cells of 16
    seen = torch.stack([random_mask(grids)[0][0] for _ in range(2000)]).mean(0)
    assert ((seen - 0.25).abs() < 0.05).all()  # 5 deviations


FOUR = torch.tensor([[-8.0, -8, 8, 8]])


def test_fine_grained_regions_of_a_box_that_no_anchor_touches_are_blank() -> None:
    for box in ([100.0, 100, 140, 140], [8.0, 8, 8, 8]):
        (mask,) = fine_grained_mask(Grids([torch.tensor([box])], [(4, 4)], [8], 1.0, [FOUR]))
        assert not mask.any()


@pytest.mark.parametrize("anchors", [(), [FOUR]])
def test_fine_grained_regions_need_anchors_on_every_level(anchors: list[Tensor]) -> None:
    grids = Grids(BOXES, SHAPES[:2], STRIDES[:2], anchors=anchors)
    with pytest.raises(ValueError, match="needs the student's anchors"):
        fine_grained_mask(grids)


def test_a_box_reaching_over_the_map_is_the_part_on_it() -> None:
    (mask,) = object_mask(Grids([torch.tensor([[-40.0, 8, 8, 400]])], [(4, 5)], [4]))
    assert mask[0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize(("cells", "levels"), [(1.5, 1), (1.5, 2), (1.5, 5), (4.0, 5), (14.0, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_gaussian_covers_the_whole_box_however_long_it_is(
    dtype: torch.dtype, cells: float, levels: int
) -> None:
    # Sides from 1 to 320 pixels in any combination, and the largest boxes of every level.
    sides = 320 ** torch.rand(500, 2, dtype=torch.float64)
    limits = 2 * cells * torch.tensor(STRIDES)[:, None, None] - 1.01
    ratios = torch.logspace(-4, 4, 99, base=2, dtype=torch.float64)
    sides = torch.cat([sides, (limits * torch.stack([ratios, 1 / ratios], dim=1)).flatten(0, 1)])
    corner = torch.rand(len(sides), 2, dtype=torch.float64) * torch.tensor([320, 256]) - sides / 4
    boxes = torch.cat([corner, corner + sides], dim=1).to(dtype)
    grids = Grids(list(boxes[:, None]), SHAPES[:levels], STRIDES[:levels], cells)
    for bump, whole in zip(gaussian_mask(grids), object_mask(grids), strict=True):
        assert torch.equal(bump > 0, whole > 0)


def test_fine_grained_regions_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    grids = Grids(BOXES, SHAPES, STRIDES, 14.0, [torch.cat([FOUR, 2 * FOUR]) * s / 4 for s in STRIDES])
    whole = fine_grained_mask(grids)
    assert all(m.any() for m in whole[:3])
    for block in (1, 2 * 2 * SHAPES[0][0] * SHAPES[0][1]):  # a box at a time; two on the finest level
        monkeypatch.setattr(masks, "_BLOCK", block)
        assert all(torch.equal(a, b) for a, b in zip(fine_grained_mask(grids), whole, strict=True))


def test_masks_of_float64_boxes_are_float64() -> None:
    grids = Grids([b.double() for b in BOXES], SHAPES, STRIDES, 14.0, [FOUR * s for s in STRIDES])
    for mask in (object_mask, gaussian_mask, shared_mask, random_mask, full_mask, fine_grained_mask):
        assert {m.dtype for m in mask(grids)} == {torch.float64}


@pytest.mark.parametrize("mask", [object_mask, gaussian_mask, random_mask])
def test_levels_with_a_gap_cannot_share_out_objects(mask: Mask) -> None:
    with pytest.raises(ConfigError, match=r"strides \[8, 32\] do not double"):
        mask(Grids(BOXES, [SHAPES[1], SHAPES[3]], [8, 32]))

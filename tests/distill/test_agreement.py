"""Masks, losses and terms on made-up maps equal the loops of ``naive.py``, in float64 to 1e-9."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher

from defeat.detectors import Captured, DetectorSpec, Level
from defeat.detectors.capture import MIN_OBJECT_CELLS
from defeat.distill import (
    AnchorTerm,
    DistillBatch,
    FeatureTerm,
    Grids,
    conv3x3,
    conv3x3_relu,
    decoupled_binary_kl,
    decoupled_feature_loss,
    decoupled_kl,
    fine_grained_mask,
    full_mask,
    gaussian_mask,
    object_mask,
    random_mask,
    shared_mask,
)
from tests.helpers import naive

few = partial(
    settings,
    deadline=None,
    derandomize=True,  # the same examples everywhere
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
near = partial(pytest.approx, rel=1e-9, abs=1e-9)
seeds = st.integers(0, 2**31)


class Case(NamedTuple):
    boxes: list[list[list[float]]]
    shapes: list[tuple[int, int]]
    strides: list[int]
    anchors: list[list[tuple[float, float, float, float]]]
    cells: float

    @property
    def grids(self) -> Grids:
        return Grids(
            self.tensors, self.shapes, self.strides, self.cells, [torch.tensor(a) for a in self.anchors]
        )

    @property
    def tensors(self) -> list[Tensor]:
        return [torch.tensor(own, dtype=torch.float64).reshape(-1, 4) for own in self.boxes]


@st.composite
def cases(draw: st.DrawFn, side: int = 14, levels: int = 5, boxes: int = 4, images: int = 3) -> Case:
    """1..levels maps that need not halve exactly, images with and without boxes of every awkward kind."""
    count, first = draw(st.integers(1, levels)), draw(st.sampled_from([4, 8, 16]))
    strides = [first * 2**i for i in range(count)]
    shapes = [(draw(st.integers(1, side)), draw(st.integers(1, side)))]
    while len(shapes) < count:
        shapes.append(tuple(max(1, (n + draw(st.integers(-1, 2))) // 2) for n in shapes[-1]))  # type: ignore[arg-type]
    height, width = (n * first for n in shapes[0])
    every = [
        [draw(awkward(height, width)) for _ in range(draw(st.integers(0, boxes)))]
        for _ in range(draw(st.integers(1, images)))
    ]
    ratios = draw(st.sampled_from([(1.0,), (0.5, 2.0), (0.5, 1.0, 2.0)]))
    scales = draw(st.sampled_from([(8,), (4, 5), (1,)]))
    anchors = [naive.cell_anchors([k * stride for k in scales], ratios) for stride in strides]
    return Case(every, shapes, strides, anchors, draw(st.sampled_from([14.0, 8.0, 4.0, 1.0])))


@st.composite
def awkward(draw: st.DrawFn, height: int, width: int) -> list[float]:
    """In quarters of a pixel, so that edges of cells are met."""

    def at(low: float, high: float) -> float:
        return draw(st.integers(round(4 * low), round(4 * high))) / 4

    x, y, w, h = at(0, width), at(0, height), at(0.25, width), at(0.25, height)
    far = draw(st.integers(1, 300))
    return {
        "any": lambda: [x, y, x + w, y + h],  # reaches over the right and lower border, too
        "clipped": lambda: [x, y, min(x + w, width), min(y + h, height)],
        "whole map": lambda: [0.0, 0.0, float(width), float(height)],
        "far corner": lambda: [float(width), float(height), float(width), float(height)],
        "last pixel": lambda: [width - 1.0, height - 1.0, float(width), float(height)],
        "pixel": lambda: [x, y, x + 1, y + 1],
        "point": lambda: [x, y, x, y],
        "line": lambda: [x, y, x + w, y] if far % 2 else [x, y, x, y + h],
        "huge": lambda: [-20.0 * far, -9.0 * far, 31.0 * far, 24.0 * far],
        "left": lambda: [-far - w, y, -float(far), y + h],
        "above": lambda: [x, -far - h, x + w, -float(far)],
        "right": lambda: [width + float(far), y, width + far + w, y + h],
        "below": lambda: [x, height + float(far), x + w, height + far + h],
        "over the left": lambda: [-w / 2, y, w / 2, y + h],
    }[draw(st.sampled_from(KINDS))]()


KINDS = [
    "any", "clipped", "whole map", "far corner", "last pixel", "pixel", "point", "line", "huge",
    "left", "above", "right", "below", "over the left",
]  # fmt: skip


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_masks(name: str, case: Case) -> list[naive.Map]:
    where = case.boxes, case.shapes, case.strides
    if name == "object":
        return naive.object_mask(*where, case.cells)
    if name == "gaussian":
        return naive.gaussian_mask(*where, case.cells)
    if name == "shared":
        return naive.shared_mask(*where)
    if name == "fine_grained":
        return naive.fine_grained_mask(*where, case.anchors, case.cells)
    return naive.full_mask(case.boxes, case.shapes)


MASKS: dict[str, Any] = {
    "object": object_mask,
    "gaussian": gaussian_mask,
    "shared": shared_mask,
    "fine_grained": fine_grained_mask,
    "full": full_mask,
}


# --- masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
@few(max_examples=70)
@given(case=cases())
def test_masks_equal_the_loops(name: str, case: Case) -> None:
    found = MASKS[name](case.grids)
    expected = [torch.tensor(m, dtype=torch.float64) for m in naive_masks(name, case)]
    assert [m.dtype for m in found] == [torch.float64] * len(case.shapes)
    for ours, loops in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, loops, atol=1e-9 if name == "gaussian" else 0, rtol=0)


@few(max_examples=40)
@given(case=cases(), threshold=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_the_fine_grained_threshold_is_a_share_of_the_best(case: Case, threshold: float) -> None:
    expected = naive.fine_grained_mask(
        case.boxes, case.shapes, case.strides, case.anchors, case.cells, threshold
    )
    found = fine_grained_mask(case.grids, threshold=threshold)
    assert [m.tolist() for m in found] == expected


@few(max_examples=25)
@given(case=cases(), stride=st.sampled_from([2, 4, 8]))
def test_the_shared_mask_may_be_drawn_at_other_strides(case: Case, stride: int) -> None:
    case = case._replace(shapes=[(h + 1, w + 1) for h, w in case.shapes])  # a cell is left of every map
    expected = naive.shared_mask(case.boxes, case.shapes, case.strides, stride)
    assert [m.tolist() for m in shared_mask(case.grids, stride=stride)] == expected


@few(max_examples=40)
@given(case=cases(), cells=st.sampled_from([2.0, 14.0]))
def test_the_least_cells_of_a_level_may_be_given(case: Case, cells: float) -> None:
    for name in ("object", "gaussian", "fine_grained"):
        expected = naive_masks(name, case._replace(cells=cells))
        for ours, loops in zip(MASKS[name](case.grids, min_object_cells=cells), expected, strict=True):
            torch.testing.assert_close(ours, torch.tensor(loops, dtype=torch.float64), atol=1e-9, rtol=0)


@few(max_examples=60)
@given(case=cases(), seed=seeds)
def test_random_masks_have_as_many_cells_everywhere(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    found = random_mask(case.grids)
    for ours, loops in zip(found, naive_masks("object", case), strict=True):
        assert ours.dtype == torch.float64
        assert set(ours.unique().tolist()) <= {0.0, 1.0}
        assert ours.sum((1, 2)).tolist() == torch.tensor(loops, dtype=torch.float64).sum((1, 2)).tolist()
    torch.manual_seed(seed)
    assert all(torch.equal(a, b) for a, b in zip(found, random_mask(case.grids), strict=True))


# --- losses ----------------------------------------------------------------------------------------------


@few(max_examples=50)
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    binary=st.booleans(),
)
def test_feature_losses_equal_the_loops(
    seed: int, shape: tuple[int, int, int, int], share: float, binary: bool
) -> None:
    s, t = normal(seed, *shape), normal(seed + 1, *shape, scale=2.0)
    chance = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(seed)).double()
    mask = (chance < share).double() if binary else share * chance
    expected = naive.feature_loss(s.tolist(), t.tolist(), mask.tolist())
    assert [x.item() for x in decoupled_feature_loss(s, t, mask)] == near(list(expected))


@st.composite
def scores(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of both, and disjoint sets of rows; no rows, none of them or all of them in one set, too."""
    n, k, seed = draw(st.integers(0, 12)), draw(st.integers(1, 6)), draw(seeds)
    scale = draw(st.sampled_from([0.1, 3.0, 25.0]))
    kind = draw(st.sampled_from(["mixed", "no positive", "all positive", "neither"]))
    chance = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    positive, negative = chance < 0.3, chance > 0.5
    if kind != "mixed":
        positive = torch.full((n,), kind == "all positive")
        negative = torch.full((n,), kind == "no positive")
    return normal(seed, n, k, scale=scale), normal(seed + 1, n, k, scale=scale), positive, negative


@pytest.mark.parametrize("pooled", [False, True])
@few(max_examples=60)
@given(rows=scores(), temperatures=st.tuples(st.floats(0.5, 8), st.floats(0.5, 8)))
def test_kl_equals_the_loops(
    pooled: bool, rows: tuple[Tensor, Tensor, Tensor, Tensor], temperatures: tuple[float, float]
) -> None:
    s, t, positive, _ = rows
    found = decoupled_kl(
        s,
        t,
        positive,
        object_temperature=temperatures[0],
        background_temperature=temperatures[1],
        pooled=pooled,
    )
    expected = naive.decoupled(
        naive.softmax_kl,
        s.tolist(),
        t.tolist(),
        positive.tolist(),
        (~positive).tolist(),
        *temperatures,
        pooled=pooled,
    )
    assert [x.item() for x in found] == near(list(expected))


@few(max_examples=60)
@given(rows=scores(), temperatures=st.tuples(st.floats(0.5, 8), st.floats(0.5, 8)))
def test_binary_kl_equals_the_loops(
    rows: tuple[Tensor, Tensor, Tensor, Tensor], temperatures: tuple[float, float]
) -> None:
    s, t, positive, negative = rows
    found = decoupled_binary_kl(
        s,
        t,
        positive,
        negative,
        object_temperature=temperatures[0],
        background_temperature=temperatures[1],
    )
    expected = naive.decoupled(
        naive.sigmoid_kl, s.tolist(), t.tolist(), positive.tolist(), negative.tolist(), *temperatures
    )
    assert [x.item() for x in found] == near(list(expected))


def test_binary_kl_of_very_sure_scores_is_finite() -> None:
    s, t = torch.tensor([[300.0, -300.0]]), torch.tensor([[-300.0, 300.0]])
    s.requires_grad_()
    loss = decoupled_binary_kl(s, t, torch.tensor([True]), torch.tensor([False])).object
    assert loss.item() == pytest.approx(600)
    loss.backward()
    assert s.grad is not None
    assert s.grad.tolist() == [[1.0, -1.0]]


def test_shapes_of_anchor_scores_must_agree() -> None:
    x, yes = torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)
    for s, t, a, b in ((x, x[:1], yes, yes), (x, x, yes[:1], yes[:1]), (x, x, yes, yes[:1])):
        with pytest.raises(ValueError, match="disagree"):
            decoupled_binary_kl(s, t, a, b)


# --- gradients by finite differences ---------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_gradients_of_kl(pooled: bool) -> None:
    s, t, positive = normal(1, 5, 4).requires_grad_(), normal(2, 5, 4), torch.arange(5) < 2
    loss = partial(decoupled_kl, object_temperature=2.0, background_temperature=0.7, pooled=pooled)
    assert torch.autograd.gradcheck(lambda x: tuple(loss(x, t, positive)), s)


def test_gradients_of_binary_kl() -> None:
    s, t = normal(1, 6, 3).requires_grad_(), normal(2, 6, 3)
    yes, no = torch.arange(6) < 2, torch.arange(6) > 3
    loss = partial(decoupled_binary_kl, object_temperature=2.0, background_temperature=0.7)
    assert torch.autograd.gradcheck(lambda x: tuple(loss(x, t, yes, no)), s)
    loss(s, t, yes, no).background.backward()
    assert s.grad is not None
    assert s.grad[:4].count_nonzero() == 0
    assert s.grad[4:].count_nonzero() == 6


@pytest.mark.parametrize("adapter", [conv3x3, conv3x3_relu])
def test_gradients_of_the_feature_loss_through_an_adapter(adapter: Any) -> None:
    layer = lively(adapter(2, 3).double())
    weights = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    boxes = torch.tensor([[3.0, 2, 13, 9]], dtype=torch.float64)
    (mask,) = gaussian_mask(Grids([boxes], [(3, 4)], [4], 1.0))
    assert 0 < mask.sum() < mask.numel()
    s, t = normal(1, 1, 2, 3, 4).requires_grad_(), normal(2, 1, 3, 3, 4)

    def loss(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        adapted = torch.func.functional_call(layer, dict(zip(weights, values, strict=True)), x)
        return tuple(decoupled_feature_loss(adapted, t, mask))

    assert torch.autograd.gradcheck(loss, (s, *weights.values()))


# --- terms on made-up maps -------------------------------------------------------------------------------


def lively(module: nn.Module, seed: int = 5) -> nn.Module:
    """Adapters start next to zero: with other weights the student's side counts as much as the teacher's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module


@pytest.mark.parametrize(
    ("maps", "name"),
    [
        ("neck", "object"),
        ("neck", "gaussian"),
        ("neck", "fine_grained"),
        ("neck", "full"),
        ("stages", "shared"),
    ],
)
@few(max_examples=12)
@given(
    case=cases(side=7, levels=5, boxes=3, images=2),
    seed=seeds,
    channels=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    head=st.sampled_from(["proposals", "anchors", "points"]),
    weights=st.tuples(st.floats(0.5, 20), st.floats(0.5, 20)),
    cut=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_the_feature_term_equals_the_loops(
    maps: Any,
    name: str,
    case: Case,
    seed: int,
    channels: tuple[int, int],
    head: Any,
    weights: tuple[float, float],
    cut: tuple[int, int],
) -> None:
    case = case._replace(cells=MIN_OBJECT_CELLS[head])
    count = len(case.strides)
    shared = range(min(cut[0], count - 1), max(count - cut[1], min(cut[0], count - 1) + 1))
    ours = [
        Level(f"s{i}", stride, channels[0], tuple(anchors))
        for i, (stride, anchors) in enumerate(zip(case.strides, case.anchors, strict=True))
    ]
    theirs = [Level(f"t{i}", case.strides[i], channels[1]) for i in shared]
    theirs.append(Level("t9", 4096, 1))  # a level that the student lacks
    s = {
        f"s{i}": normal(seed + i, len(case.boxes), channels[0], *shape) for i, shape in enumerate(case.shapes)
    }
    t = {
        f"t{i}": normal(seed - 1 - i, len(case.boxes), channels[1], *case.shapes[i], scale=2.0)
        for i in shared
    }
    both = {"neck": (), "stages": (), "head": head}
    term = FeatureTerm(
        DetectorSpec(**{**both, maps: tuple(ours)}),  # type: ignore[arg-type]
        DetectorSpec(**{**both, "head": "points", maps: tuple(theirs)}),  # type: ignore[arg-type]
        maps=maps,
        object_weight=weights[0],
        background_weight=weights[1],
        mask=MASKS[name],
        adapter=conv3x3_relu if maps == "stages" else conv3x3,
    ).double()
    lively(term)
    captured = Captured(targets=[{"boxes": b} for b in case.tensors], **{maps: s})  # type: ignore[typeddict-item]
    parts = term(DistillBatch(nn.Identity(), nn.Identity(), captured, Captured(**{maps: t})))

    part = case._replace(
        shapes=[case.shapes[i] for i in shared],
        strides=[case.strides[i] for i in shared],
        anchors=[case.anchors[i] for i in shared],
    )
    each = []
    for i, mask in zip(shared, naive_masks(name, part), strict=True):
        layer = term.adapters.layers[str(case.strides[i])]
        conv = layer[0] if maps == "stages" else layer
        adapted = naive.conv3x3(
            s[f"s{i}"].tolist(), conv.weight.tolist(), conv.bias.tolist(), relu=maps == "stages"
        )
        each.append(naive.feature_loss(adapted, t[f"t{i}"].tolist(), mask))
    mean = naive.mean_over_levels(each)
    assert [parts["object"].sum().item(), parts["background"].sum().item()] == near(
        [weights[0] * mean.object, weights[1] * mean.background]
    )
    # A vector tells the levels apart.
    assert parts["object"].tolist() == near([weights[0] * x.object / len(each) for x in each])
    assert parts["background"].tolist() == near([weights[1] * x.background / len(each) for x in each])


@few(max_examples=40)
@given(
    case=cases(side=5, levels=3, boxes=3),
    seed=seeds,
    classes=st.integers(1, 3),
    temperatures=st.tuples(st.floats(0.5, 4), st.floats(0.5, 4)),
)
def test_the_anchor_term_equals_the_loops(
    case: Case, seed: int, classes: int, temperatures: tuple[float, float]
) -> None:
    laid = list(naive.anchors_of(case.shapes, case.strides, case.anchors))
    shape = (len(case.boxes), len(laid), classes + 1)
    s, t = normal(seed, *shape, scale=3.0), normal(seed + 1, *shape, scale=3.0)
    s[..., 0], t[..., 0] = 1e3, -1e3  # the output for background must not count
    spec = DetectorSpec((), tuple(Level("x", 4, 1, tuple(own)) for own in case.anchors), "anchors")
    term = AnchorTerm(
        spec,
        spec,
        object_weight=2.0,
        background_weight=3.0,
        object_temperature=temperatures[0],
        background_temperature=temperatures[1],
    )
    student: Any = SimpleNamespace(proposal_matcher=Matcher(0.5, 0.4, allow_low_quality_matches=True))
    teacher: Any = SimpleNamespace(anchor_logits=lambda neck: t, known_labels=None)
    captured = Captured(
        targets=[{"boxes": b, "labels": torch.ones(len(b), dtype=torch.int64)} for b in case.tensors],  # type: ignore[typeddict-item]
        anchors=[torch.tensor(laid, dtype=torch.float64)] * len(case.boxes),
        anchor_logits=s,
    )
    parts = term(DistillBatch(student, teacher, captured, Captured()))
    matched = [naive.match_anchors(laid, own) for own in case.boxes]
    expected = naive.decoupled(
        naive.sigmoid_kl,
        s[..., 1:].flatten(0, 1).tolist(),
        t[..., 1:].flatten(0, 1).tolist(),
        [x for positive, _ in matched for x in positive],
        [x for _, negative in matched for x in negative],
        *temperatures,
    )
    assert parts["object"].item() == near(2 * expected.object)
    assert parts["background"].item() == near(3 * expected.background)

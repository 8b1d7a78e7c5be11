"""The distillers of ``conf/`` on tiny detectors equal the loops of ``naive.py``; where their gradients go."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defeat.config import build
from defeat.detectors import Captured, inspect_detector
from defeat.distill import (
    AnchorTerm,
    FeatureTerm,
    HeadTerm,
    conv3x3_relu,
    fine_grained_mask,
    gaussian_mask,
    shared_mask,
)
from defeat.errors import ConfigError
from tests.helpers.agree import (
    Head,
    Kind,
    Neck,
    Recipe,
    build_distiller,
    check,
    detector,
    expected,
    features,
    forward,
    inspected,
    lively,
    observe,
    once,
)
from tests.helpers.distillation import distiller_config

DECOUPLED = Neck("object", 4, 16)
DEEP = Neck("shared", 1, 1, (16, 32))
RECIPES = {
    "neck": Recipe(DECOUPLED),
    "neck_object": Recipe(Neck("object", 4, 0)),
    "neck_background": Recipe(Neck("object", 0, 16)),
    "neck_gaussian": Recipe(Neck("gaussian", 4, 16)),
    "neck_fine_grained": Recipe(Neck("fine_grained", 4, 16)),
    "all_neck": Recipe(Neck("full", 20, 0)),
    "fgfi": Recipe(Neck("fine_grained", 4, 0)),
    "neck_cls": Recipe(DECOUPLED, Head(2, 2)),
    "neck_all_cls": Recipe(DECOUPLED, Head(2, 2, pooled=True)),
    "neck_cls_positive": Recipe(DECOUPLED, Head(2, 0)),
    "neck_cls_negative": Recipe(DECOUPLED, Head(0, 2)),
    "neck_cls_student": Recipe(DECOUPLED, Head(2, 2, proposals="student")),
    "tadf": Recipe(Neck("gaussian", 4, 0), Head(2, 0)),
    "defeat": Recipe(DECOUPLED, Head(2, 2), DEEP),
    "defeat_lean": Recipe(DECOUPLED, Head(2, 2, proposals="student"), DEEP),
    "defeat_scenes": Recipe(DECOUPLED, Head(2, 2), Neck("shared", 1, 1, (8, 16))),
}
ONE_STAGE = {
    "neck": Recipe(DECOUPLED),
    "fgfi": Recipe(Neck("fine_grained", 4, 0)),
    "neck_gaussian": Recipe(Neck("gaussian", 4, 16)),
    "defeat_retinanet": Recipe(DECOUPLED, None, DEEP),
}
WITH_ANCHORS = Recipe(DECOUPLED, Head(1, 1, proposals="anchors"), DEEP)

NECK = partial(FeatureTerm, maps="neck", object_weight=4.0, background_weight=16.0)
BACKBONE = partial(
    FeatureTerm,
    maps="stages",
    object_weight=1.0,
    background_weight=2.0,
    mask=shared_mask,
    adapter=conv3x3_relu,
)
HEAD = partial(HeadTerm, object_weight=2.0, background_weight=3.0)
ANCHOR = partial(AnchorTerm, object_weight=2.0, background_weight=3.0)
BOTH = ["object", "background"]


@cache
def pair(kind: Kind) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return detector(kind, "student"), detector(kind, "teacher")


def configured(name: str, kind: Kind, *overrides: str) -> nn.Module:
    """A distiller as ``distiller=NAME`` on the command line makes it."""
    with once():
        return lively(build(distiller_config(name, *overrides))(*pair(kind)))


def checked(recipe: Recipe, name: str, kind: Kind, *overrides: str) -> dict[str, float]:
    distiller = configured(name, kind, *overrides)
    return check(recipe, observe(distiller, *pair(kind)), distiller, (kind, kind))


# --- configurations against the loops --------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_configured_distiller_equals_the_loops(name: str) -> None:
    checked(RECIPES[name], name, "frcnn")


@pytest.mark.parametrize("name", ONE_STAGE)
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_configured_distiller_of_one_stage_detectors_equals_the_loops(name: str, kind: Kind) -> None:
    checked(ONE_STAGE[name], name, kind)


def test_the_configured_head_term_of_retinanet_equals_the_loops() -> None:
    checked(WITH_ANCHORS, "defeat_retinanet_head", "retinanet")


def test_temperatures_of_the_configuration_are_told_apart() -> None:
    warm = ["distiller.terms.head.object_temperature=3", "distiller.terms.head.background_temperature=0.5"]
    head = Head(2, 2, (3.0, 0.5))
    checked(Recipe(DECOUPLED, head), "neck_cls", "frcnn", *warm)
    checked(Recipe(DECOUPLED, head._replace(pooled=True)), "neck_all_cls", "frcnn", *warm)
    checked(
        WITH_ANCHORS._replace(head=Head(1, 1, (3.0, 0.5), "anchors")),
        "defeat_retinanet_head",
        "retinanet",
        *warm,
    )


def test_random_regions_are_drawn_anew_and_weighed_as_the_others() -> None:
    distiller: Any = configured("neck_random", "frcnn")
    term = distiller.terms["neck"]
    mask, drawn = term.mask, []
    term.mask = lambda grids: drawn.append(mask(grids)) or drawn[-1]
    for _ in range(2):
        of = observe(distiller, *pair("frcnn"))
        loops = features(
            DECOUPLED, "neck", of, distiller, ("frcnn", "frcnn"), drawn=[m.tolist() for m in drawn[-1]]
        )
        assert of.losses["neck_object"].item() == pytest.approx(4 * loops.object, rel=1e-9)
        assert of.losses["neck_background"].item() == pytest.approx(16 * loops.background, rel=1e-9)
    assert any(not torch.equal(a, b) for a, b in zip(*drawn, strict=True))


# --- proposals of every kind -----------------------------------------------------------------------------


@pytest.mark.parametrize("proposals", ["teacher", "student"])
@pytest.mark.parametrize("pooled", [False, True])
def test_without_objects_there_are_no_positive_proposals(proposals: Any, pooled: bool) -> None:
    student, teacher = pair("frcnn")
    distiller = build_distiller(student, teacher, head=partial(HEAD, proposals=proposals, pooled=pooled))
    of = observe(distiller, student, teacher, forward(student, empty=True))
    loops = expected(
        Recipe(head=Head(2, 3, proposals=proposals, pooled=pooled)), of, distiller, ("frcnn", "frcnn")
    )
    assert of.losses["head_object"] == loops["head_object"] == 0
    assert of.losses["head_background"].item() == pytest.approx(loops["head_background"], rel=1e-9)
    assert loops["head_background"] > 1e-3


def test_all_proposals_positive() -> None:
    student, teacher = pair("frcnn")
    distiller = build_distiller(student, teacher, head=partial(HEAD, proposals="student"))
    captured = forward(student)
    boxes = [t["boxes"] for t in captured.targets]
    logits = torch.randn(sum(map(len, boxes)), 3, dtype=torch.float64)
    of = observe(distiller, student, teacher, replace(captured, proposals=boxes, class_logits=logits))
    loops = expected(Recipe(head=Head(2, 3, proposals="student")), of, distiller, ("frcnn", "frcnn"))
    assert of.losses["head_background"] == loops["head_background"] == 0
    assert of.losses["head_object"].item() == pytest.approx(loops["head_object"], rel=1e-9)
    assert loops["head_object"] > 1e-3


def test_without_objects_all_anchors_are_negative() -> None:
    student, teacher = pair("retinanet")
    distiller = build_distiller(student, teacher, neck=NECK, head=ANCHOR)
    of = observe(distiller, student, teacher, forward(student, empty=True))
    loops = expected(
        Recipe(DECOUPLED, Head(2, 3, proposals="anchors")), of, distiller, ("retinanet", "retinanet")
    )
    assert {k: v.item() for k, v in of.losses.items()} == pytest.approx(loops, rel=1e-9)
    assert loops["head_object"] == loops["neck_object"] == 0
    assert min(loops["head_background"], loops["neck_background"]) > 1e-3


def test_on_the_teachers_proposals_the_student_scores_them_and_on_its_own_it_does_not() -> None:
    student, teacher = pair("frcnn")
    of = observe(build_distiller(student, teacher, head=HEAD), student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(of.again.proposals, of.teacher.proposals, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(of.student.proposals, of.teacher.proposals, strict=True))
    lean = build_distiller(student, teacher, head=partial(HEAD, proposals="student"))
    of = observe(lean, student, teacher)
    assert of.again.class_logits is None
    assert all(torch.equal(a, b) for a, b in zip(of.student.proposals, of.teacher.proposals, strict=True))


# --- gradients -------------------------------------------------------------------------------------------

TERMS: dict[str, tuple[Kind, Any, list[str], list[str]]] = {
    "neck": ("frcnn", NECK, ["backbone.fpn", "backbone.body"], ["roi_heads", "rpn"]),
    "stages": ("frcnn", BACKBONE, ["backbone.body"], ["backbone.fpn", "roi_heads", "rpn"]),
    "teacher proposals": (
        "frcnn",
        HEAD,
        ["backbone.body", "backbone.fpn", "roi_heads.box_head", "roi_heads.box_predictor.cls_score"],
        ["rpn", "roi_heads.box_predictor.bbox_pred"],
    ),
    "student proposals": (
        "frcnn",
        partial(HEAD, proposals="student"),
        ["backbone.body", "backbone.fpn", "roi_heads.box_head", "roi_heads.box_predictor.cls_score"],
        ["rpn", "roi_heads.box_predictor.bbox_pred"],
    ),
    "pooled": ("frcnn", partial(HEAD, pooled=True), ["roi_heads.box_predictor.cls_score"], ["rpn"]),
    "anchors": (
        "retinanet",
        ANCHOR,
        ["backbone.body", "backbone.fpn", "head.classification_head"],
        ["head.regression_head"],
    ),
    "retinanet neck": ("retinanet", NECK, ["backbone.body", "backbone.fpn"], ["head"]),
    "fcos neck": ("fcos", NECK, ["backbone.body", "backbone.fpn"], ["head"]),
    "fcos stages": ("fcos", BACKBONE, ["backbone.body"], ["backbone.fpn", "head"]),
    "gaussian": ("frcnn", partial(NECK, mask=gaussian_mask), ["backbone.body"], ["rpn"]),
    "fine grained": ("fcos", partial(NECK, mask=fine_grained_mask), ["backbone.body"], ["head"]),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients_of_a_term_reach_student_and_adapters_and_never_the_teacher(name: str) -> None:
    kind, term, reached, spared = TERMS[name]
    student, teacher = pair(kind)
    teacher.requires_grad_(True)  # someone may forget to freeze it
    distiller: Any = build_distiller(student, teacher, term=term)
    lessons: list[Captured] = []
    distiller.terms["term"].register_forward_pre_hook(
        lambda module, args: lessons.append(args[0].teacher_captures)
    )
    try:
        of = observe(distiller, student, teacher)
        found = {half: touched(of.losses[f"term_{half}"], student, teacher, distiller) for half in BOTH}
    finally:
        teacher.requires_grad_(False)
    for names, lesson, adapters in found.values():
        assert lesson == set()
        # A level without objects has nothing for its adapter in the object half.
        assert adapters or not list(distiller.parameters())
        for prefix in reached:
            assert any(n.startswith(f"{prefix}.") for n in names), prefix
        for prefix in spared:
            assert not any(n.startswith(f"{prefix}.") for n in names), prefix
    assert found["background"][2] == {n for n, _ in distiller.named_parameters()}
    (taught_maps,) = ((*x.neck.values(), *x.stages.values()) for x in lessons)
    scored = [x for x in (of.teacher.class_logits, of.teacher.anchor_logits) if x is not None]
    assert not any(x.requires_grad for x in (*taught_maps, *scored))


def touched(loss: Tensor, *modules: nn.Module) -> list[set[str]]:
    """Of each module, the names of the parameters that a loss sends a gradient other than 0."""
    named = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in modules]
    every = [p for own in named for p in own.values()]
    grads = iter(torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True))
    return [
        {n for n, g in zip(own, grads, strict=False) if g is not None and g.count_nonzero()} for own in named
    ]


@pytest.mark.parametrize("kind", ["frcnn", "retinanet", "fcos"])
def test_distilling_leaves_the_teacher_as_it_was(kind: Kind) -> None:
    student, teacher = pair(kind)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    terms = {"frcnn": {"head": HEAD}, "retinanet": {"head": ANCHOR}, "fcos": {}}[kind]
    distiller = build_distiller(student, teacher, neck=NECK, backbone=BACKBONE, **terms)
    sum(observe(distiller, student, teacher).losses.values()).backward(retain_graph=True)  # type: ignore[union-attr]
    student.zero_grad()
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


# --- weights, and what is refused ------------------------------------------------------------------------

WEIGHED: dict[str, tuple[Kind, Any]] = {
    "neck": ("frcnn", NECK),
    "backbone": ("frcnn", BACKBONE),
    "head": ("frcnn", HEAD),
    "anchors": ("retinanet", ANCHOR),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_scale_their_half_and_0_leaves_it_out(name: str) -> None:
    kind, term = WEIGHED[name]
    student, teacher = pair(kind)

    def losses(object_weight: float, background_weight: float) -> dict[str, Tensor]:
        torch.manual_seed(2)  # the same adapters, the same proposals
        weighed = partial(term, object_weight=object_weight, background_weight=background_weight)
        distiller = build_distiller(student, teacher, term=weighed)
        return observe(distiller, student, teacher).losses

    one, more = losses(1.0, 1.0), losses(3.0, 7.0)
    torch.testing.assert_close(more["term_object"], 3 * one["term_object"])
    torch.testing.assert_close(more["term_background"], 7 * one["term_background"])
    assert losses(3.0, 0.0) == {"term_object": more["term_object"]}
    assert losses(0.0, 7.0) == {"term_background": more["term_background"]}


@pytest.mark.parametrize("name", ["head", "anchors"])
@pytest.mark.parametrize("temperature", ["object_temperature", "background_temperature"])
def test_temperatures_must_be_positive(name: str, temperature: str) -> None:
    kind, term = WEIGHED[name]
    with pytest.raises(ConfigError, match="temperatures must be positive"):
        term(*map(inspected, pair(kind)), **{temperature: 0.0})


def test_the_fine_grained_mask_refuses_maps_without_anchors() -> None:
    student, teacher = pair("frcnn")
    distiller = build_distiller(student, teacher, backbone=partial(BACKBONE, mask=fine_grained_mask))
    with pytest.raises(ValueError, match="needs the student's anchors, which pyramid levels have"):
        observe(distiller, student, teacher)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("frcnn", "retinanet"), "the student classifies proposals"),
        (("retinanet", "frcnn"), "the teacher classifies proposals"),
        (("retinanet", "fcos"), "the teacher classifies points"),
        (("fcos", "fcos"), "the student classifies points"),
    ],
)
def test_the_anchor_term_refuses_other_families_in_one_line(kinds: tuple[Kind, Kind], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        ANCHOR(inspected(pair(kinds[0])[0]), inspected(pair(kinds[1])[1]))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "kinds", [("frcnn", "fcos"), ("fcos", "frcnn"), ("retinanet", "frcnn"), ("frcnn", "retinanet")]
)
def test_the_head_term_refuses_one_stage_detectors_in_one_line(kinds: tuple[Kind, Kind]) -> None:
    role = "teacher" if kinds[0] == "frcnn" else "student"
    with pytest.raises(ConfigError, match=f"the {role} is a one-stage detector") as refusal:
        HEAD(inspected(pair(kinds[0])[0]), inspected(pair(kinds[1])[1]))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"aspect_ratios": (0.5, 1.0, 3.0)},
        {"anchor_sizes": [(32, 40, 48), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812)]},
        {"returned_layers": (3, 4), "anchor_sizes": [(32,), (64,), (128,), (256,)]},
        {"anchors": "float"},
        {"strides": "fixed"},
    ],
)
def test_the_anchor_term_refuses_differing_anchors_in_one_line(settings: dict[str, Any]) -> None:
    other = inspect_detector(detector("retinanet", "teacher", **settings))
    with pytest.raises(ConfigError, match="needs the same anchors on both sides") as refusal:
        ANCHOR(inspected(pair("retinanet")[0]), other)
    assert "\n" not in str(refusal.value)


def test_the_anchor_term_takes_both_strides_where_batches_are_whole_multiples_of_them() -> None:
    whole = inspect_detector(detector("retinanet", "student", size_divisible=128))
    ANCHOR(whole, inspect_detector(detector("retinanet", "teacher", strides="fixed")))

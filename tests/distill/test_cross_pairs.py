"""Students and teachers of different families, backbones, channels and levels."""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn_v2

from defeat.detectors import capture
from defeat.distill import (
    Distiller,
    FeatureTerm,
    HeadTerm,
    conv3x3_relu,
    fine_grained_mask,
    gaussian_mask,
    object_mask,
    shared_mask,
)
from defeat.errors import ConfigError
from tests.helpers import agree, naive
from tests.helpers.agree import (
    IMAGES,
    TARGETS,
    Head,
    Kind,
    Neck,
    Recipe,
    build_distiller,
    check,
    detector,
    features,
    inspected,
    observe,
    once,
)

NECK = partial(FeatureTerm, maps="neck", object_weight=4.0, background_weight=16.0)
BACKBONE = partial(
    FeatureTerm,
    maps="stages",
    object_weight=1.0,
    background_weight=2.0,
    mask=shared_mask,
    adapter=conv3x3_relu,
)
WHOLE = Recipe(Neck("object", 4, 16), None, Neck("shared", 1, 2))
FAMILIES: list[tuple[Kind, Kind]] = [
    ("frcnn", "retinanet"),
    ("retinanet", "frcnn"),
    ("frcnn", "fcos"),
    ("fcos", "frcnn"),
    ("retinanet", "fcos"),
]
STRIDES = {"frcnn": {4, 8, 16, 32, 64}, "retinanet": {8, 16, 32, 64, 128}, "fcos": {8, 16, 32, 64, 128}}


@cache
def pair(ours: Kind, theirs: Kind) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return detector(ours, "student"), detector(theirs, "teacher")


@pytest.mark.parametrize(("ours", "theirs"), FAMILIES)
def test_families_teach_each_other_on_the_levels_they_share(
    ours: Kind, theirs: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher = pair(ours, theirs)
    with caplog.at_level(logging.WARNING):
        distiller: Any = build_distiller(student, teacher, neck=NECK, backbone=BACKBONE)
    alone, unused = (sorted(STRIDES[a] - STRIDES[b]) for a, b in ((ours, theirs), (theirs, ours)))
    assert [r.getMessage() for r in caplog.records] == (
        [
            "pyramid levels without a partner are not distilled: "
            f"student strides {alone}, teacher strides {unused}"
        ]
        if alone or unused
        else []
    )
    common = [s.stride for s, _ in distiller.terms["neck"].adapters.levels]
    assert common == sorted(STRIDES[ours] & STRIDES[theirs])
    check(WHOLE, observe(distiller, student, teacher), distiller, (ours, theirs))


@pytest.mark.parametrize(("ours", "theirs"), [("retinanet", "frcnn"), ("frcnn", "fcos"), ("fcos", "frcnn")])
@pytest.mark.parametrize("mask", ["object", "gaussian", "fine_grained"])
def test_masks_follow_the_students_level_rule(
    ours: Kind, theirs: Kind, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair(ours, theirs)
    masks = {"object": object_mask, "gaussian": gaussian_mask, "fine_grained": fine_grained_mask}
    distiller = build_distiller(student, teacher, neck=partial(NECK, mask=masks[mask]))
    of = observe(distiller, student, teacher)
    term = Neck(mask, 4, 16)
    loops = check(Recipe(term), of, distiller, (ours, theirs))
    monkeypatch.setitem(agree.CELLS, ours, agree.CELLS[theirs])
    by_teacher = features(term, "neck", of, distiller, (ours, theirs))
    assert abs(4 * by_teacher.object - loops["neck_object"]) > 1e-4  # the rule makes a difference here


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mobilenet_v2", "resnet10"),
        ("resnet10", "mobilenet_v3_small"),
        ("mobilenet_v3_small", "mobilenet_v2"),
    ],
)
def test_backbones_teach_each_other(ours: str, theirs: str) -> None:
    student = detector("frcnn", "student", backbone=ours)
    teacher = detector("frcnn", "teacher", backbone=theirs)
    head = partial(HeadTerm, object_weight=2.0, background_weight=3.0)
    deep = partial(BACKBONE, strides=[16, 32])
    distiller = build_distiller(student, teacher, neck=NECK, head=head, backbone=deep)
    recipe = Recipe(Neck("object", 4, 16), Head(2, 3), Neck("shared", 1, 2, (16, 32)))
    check(recipe, observe(distiller, student, teacher), distiller, ("frcnn", "frcnn"))


def test_more_channels_than_the_teacher() -> None:
    student = detector("frcnn", "student", fpn_channels=24)
    teacher = detector("frcnn", "teacher", fpn_channels=5)
    distiller: Any = build_distiller(student, teacher, neck=NECK)
    assert {(x.in_channels, x.out_channels) for x in distiller.terms["neck"].adapters.layers.values()} == {
        (24, 5)
    }
    check(Recipe(Neck("object", 4, 16)), observe(distiller, student, teacher), distiller, ("frcnn", "frcnn"))


def test_detectors_without_a_level_in_common_are_refused() -> None:
    student = detector("frcnn", "student", returned_layers=(1,))  # strides 4 and 8
    teacher = detector("retinanet", "teacher", returned_layers=(3, 4))  # from stride 16 on
    with pytest.raises(
        ConfigError, match=r"neck of student \(strides \[4, 8\]\) and teacher .*no stride"
    ) as no:
        NECK(inspected(student), inspected(teacher))
    assert "\n" not in str(no.value)


def test_a_torchvision_builder_teaches() -> None:
    student = detector("frcnn", "student").float()
    teacher = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3)
    teacher.requires_grad_(False).eval()
    with once():
        distiller = Distiller(student, teacher, terms={"neck": partial(NECK, strides=[8, 16, 32])})
    nn.init.normal_(distiller.terms["neck"].adapters.layers["8"].weight, std=0.05)  # type: ignore[union-attr]
    with capture(student) as captured:
        student([x.float() for x in IMAGES], [{**t, "boxes": t["boxes"].float()} for t in TARGETS])
    of = observe(distiller, student, teacher, captured)
    loops = features(Neck("object", 4, 16, (8, 16, 32)), "neck", of, distiller, ("frcnn", "frcnn"))
    # in float32, as teachers from files come
    assert of.losses["neck_object"].item() == pytest.approx(4 * loops.object, rel=1e-5)
    assert of.losses["neck_background"].item() == pytest.approx(16 * loops.background, rel=1e-5)
    sum(of.losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in distiller.parameters())


def test_of_several_maps_of_one_stride_the_deepest_is_taught() -> None:
    # torchvision's own MobileNet detector: pyramid and stages of stride 32 twice, the second one deeper.
    student = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=128, max_size=128
    )
    student.double().train()
    teacher = detector("frcnn", "teacher")
    deep = partial(BACKBONE, strides=[32], adapter=partial(nn.Conv2d, kernel_size=1))
    distiller: Any = build_distiller(student, teacher, neck=NECK, backbone=deep)
    levels = {name: [s for s, _ in term.adapters.levels] for name, term in distiller.terms.items()}
    assert [(x.name, x.stride) for x in levels["neck"]] == [("1", 32), ("pool", 64)]
    assert [(x.stride, x.channels) for x in levels["backbone"]] == [(32, 960)]
    of = observe(distiller, student, teacher)
    shapes = [tuple(of.student.neck[name].shape[-2:]) for name in ("1", "pool")]
    boxes = [t["boxes"].tolist() for t in of.student.targets]
    each = [
        naive.feature_loss(
            distiller.terms["neck"].adapters.layers[str(stride)](of.student.neck[ours]).tolist(),
            of.teacher.neck[theirs].tolist(),
            mask,
        )
        for ours, theirs, stride, mask in zip(
            ("1", "pool"), ("3", "pool"), (32, 64), naive.object_mask(boxes, shapes, [32, 64]), strict=True
        )
    ]
    mean = naive.mean_over_levels(each)
    assert of.losses["neck_object"].item() == pytest.approx(4 * mean.object, rel=1e-9)
    assert of.losses["neck_background"].item() == pytest.approx(16 * mean.background, rel=1e-9)
    assert of.losses["backbone_object"].isfinite()

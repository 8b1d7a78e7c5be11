from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors import FrozenTeacher, capture, faster_rcnn, inspect_detector, retinanet
from defeat.distill import (
    Distiller,
    FeatureTerm,
    HeadTerm,
    conv3x3,
    conv3x3_relu,
    shared_mask,
)
from defeat.distill.schedules import constant, cosine, linear, up_down, warmup
from defeat.errors import ConfigError
from tests.helpers.narrow import NARROW

SMALL: dict[str, Any] = {
    "backbone": NARROW,
    "min_size": 64,
    "max_size": 64,
    "norm": "batch",
    "trainable_layers": 5,
}
FRCNN: dict[str, Any] = {**SMALL, "box_head_channels": 16, "box_batch_size_per_image": 32}
IMAGES = [torch.rand(3, 48, 64), torch.rand(3, 64, 40), torch.rand(3, 64, 64)]
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 30, 40], [20, 20, 28, 28]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.tensor([[2.0, 5, 38, 60]]), "labels": torch.tensor([2])},
    {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)},
]
NECK = partial(FeatureTerm, maps="neck", object_weight=4.0, background_weight=16.0)
STAGES = partial(
    FeatureTerm,
    maps="stages",
    object_weight=1.0,
    background_weight=2.0,
    mask=shared_mask,
    adapter=conv3x3_relu,
    strides=[16, 32],
)
HEAD = partial(HeadTerm, object_weight=2.0, background_weight=3.0)
ALL = {"neck": NECK, "head": HEAD, "backbone": STAGES}


def pair(student_channels: int = 8, teacher_channels: int = 12) -> tuple[nn.Module, nn.Module]:
    student = faster_rcnn(3, **FRCNN, fpn_channels=student_channels).train()
    teacher = faster_rcnn(3, **{**FRCNN, "backbone": NARROW}, fpn_channels=teacher_channels)
    return student, teacher.requires_grad_(False).eval()


def distil(
    distiller: Distiller, student: nn.Module, teacher: nn.Module, progress: float = 0.0
) -> dict[str, Tensor]:
    with capture(student) as captured:
        student(IMAGES, TARGETS)
    return distiller(student, FrozenTeacher(teacher), captured, progress)  # type: ignore[no-any-return]


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    student, _ = pair(8, 8)
    identity = partial(NECK, adapter=lambda a, b: nn.Identity())
    head = partial(HEAD, proposals="student")
    student.eval()  # the same batch statistics on both sides
    distiller = Distiller(student, student, terms={"neck": identity, "head": head})
    with torch.no_grad(), capture(student) as captured:
        image_list, targets = student.transform(IMAGES, TARGETS)
        neck = student.backbone(image_list.tensors)
        student.roi_heads.box_predictor(
            student.roi_heads.box_head(
                student.roi_heads.box_roi_pool(neck, [t["boxes"] for t in targets], image_list.image_sizes)
            )
        )
    losses = distiller(student, FrozenTeacher(deepcopy(student)), captured, 0.0)
    assert all(abs(v.item()) < 1e-6 for v in losses.values())


def test_levels_are_matched_by_stride_and_the_rest_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    student = retinanet(3, **SMALL, fpn_channels=8).train()  # strides 8..128
    teacher = faster_rcnn(3, **FRCNN, fpn_channels=12).requires_grad_(False).eval()  # strides 4..64
    distiller = Distiller(student, teacher, terms={"neck": NECK})
    assert list(distiller.terms["neck"].adapters.layers) == ["8", "16", "32", "64"]
    assert "student strides [128], teacher strides [4]" in caplog.text
    assert all(v.isfinite() for v in distil(distiller, student, teacher).values())


def test_strides_choose_levels_and_must_exist() -> None:
    student, teacher = pair()
    ours, theirs = inspect_detector(student), inspect_detector(teacher)
    assert list(NECK(ours, theirs, strides=[8, 32]).adapters.layers) == ["8", "32"]
    with pytest.raises(ConfigError, match=r"neck of strides \[128\] asked for"):
        NECK(ours, theirs, strides=[8, 128])


def test_the_schedule_scales_every_term() -> None:
    student, teacher = pair()
    distiller = Distiller(student, teacher, terms={"neck": NECK}, schedule=linear)
    start, later = distil(distiller, student, teacher, 0.0), distil(distiller, student, teacher, 0.75)
    for name in start:
        # batch statistics are those of the same images, so only the factor differs
        torch.testing.assert_close(later[name], 0.25 * start[name], rtol=1e-4, atol=1e-6)


def test_schedules() -> None:
    points = (0.0, 0.125, 0.25, 0.5, 0.625, 1.0)
    assert [constant(p) for p in points] == [1] * 6
    assert [linear(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [round(cosine(p), 6) for p in (0, 0.5, 1)] == [1, 0.5, 0]
    assert [up_down(p) for p in points] == pytest.approx([0, 1, 2, 4 / 3, 1, 0])
    assert [warmup(p, until=0.5) for p in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    assert warmup(0.5, until=0.25, then=linear) == 0.5
    with pytest.raises(ValueError, match="until"):
        warmup(0.1, until=0)


def test_adapters_start_close_to_zero_within_two_deviations() -> None:
    conv = conv3x3(64, 64)
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.padding) == (64, 64, (3, 3), (1, 1))
    assert conv.weight.abs().max() <= 2e-4
    assert 0.8e-4 < conv.weight.std() < 0.95e-4  # a normal cut at two deviations has 0.88 of its deviation
    assert conv3x3_relu(2, 3)(-torch.ones(1, 2, 4, 4)).min() >= 0


def test_wrong_combinations_are_refused() -> None:
    student, teacher = pair()
    with pytest.raises(ConfigError, match="no terms"):
        Distiller(student, teacher, terms={"neck": None})
    with pytest.raises(ConfigError, match="temperatures"):
        Distiller(student, teacher, terms={"head": partial(HEAD, object_temperature=0.0)})
    with pytest.raises(ConfigError, match="proposals must be teacher or student"):
        Distiller(student, teacher, terms={"head": partial(HEAD, proposals="both")})
    teacher.transform.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(ConfigError, match="normalise pixels differently"):
        Distiller(student, teacher, terms=ALL)


def test_the_teacher_computes_and_keeps_only_what_terms_read() -> None:
    student, teacher = pair()
    with capture(student) as captured:
        student(IMAGES, TARGETS)

    def computed(**terms: Any) -> tuple[set[str], set[str]]:
        observed = (
            Distiller(student, teacher, terms=terms)
            .make_batch(student, FrozenTeacher(teacher), captured)
            .teacher_captures
        )
        return set(observed.stages), set(observed.neck)

    levels = {"0", "1", "2", "3", "pool"}
    assert computed(neck=NECK) == (set(), levels)
    assert computed(neck=NECK, head=HEAD, backbone=STAGES) == ({"2", "3"}, levels)
    assert computed(backbone=STAGES) == ({"2", "3"}, set())
    assert computed(head=HEAD) == (set(), levels)
    assert computed(one=partial(STAGES, strides=[8]), two=STAGES) == ({"1", "2", "3"}, set())


def test_without_the_pyramid_the_loss_of_stages_is_the_same() -> None:
    student, teacher = pair()
    torch.manual_seed(1)
    alone = distil(Distiller(student, teacher, terms={"backbone": STAGES}), student, teacher)
    torch.manual_seed(1)
    both = distil(Distiller(student, teacher, terms={"backbone": STAGES, "neck": NECK}), student, teacher)
    assert alone == {name: value for name, value in both.items() if name.startswith("backbone")}


def test_terms_of_the_head_are_computed_first_and_named_in_their_place() -> None:
    order = []

    class Watched(FeatureTerm):
        def forward(self, both: Any) -> dict[str, Tensor]:
            order.append("neck")
            return super().forward(both)

    class WatchedHead(HeadTerm):
        def forward(self, both: Any) -> dict[str, Tensor]:
            order.append("head")
            return super().forward(both)

    student, teacher = pair()
    terms = {
        "neck": partial(Watched, object_weight=1.0, background_weight=1.0),
        "head": partial(WatchedHead, object_weight=1.0, background_weight=1.0),
    }
    found = distil(Distiller(student, teacher, terms=terms), student, teacher)
    assert order == ["head", "neck"]
    assert list(found) == ["neck_object", "neck_background", "head_object", "head_background"]

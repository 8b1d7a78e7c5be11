"""Tiny detectors in float64, and what the loops of ``naive.py`` make of the tensors they computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal, NamedTuple, cast
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defeat.detectors import Captured, FrozenTeacher, capture, faster_rcnn, fcos, inspect_detector, retinanet
from defeat.distill import Distiller
from tests.helpers import naive

Kind = Literal["frcnn", "retinanet", "fcos"]

LEVELS: dict[Kind, dict[str, int]] = {
    "frcnn": {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64},
    "retinanet": {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128},
    "fcos": {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128},
}
STAGES: dict[Kind, dict[str, int]] = {
    "frcnn": {"0": 4, "1": 8, "2": 16, "3": 32},
    "retinanet": {"0": 8, "1": 16, "2": 32},
    "fcos": {"0": 8, "1": 16, "2": 32},
}
CELLS: dict[Kind, float] = {"frcnn": 14.0, "retinanet": 4.0, "fcos": 8.0}
THIRDS = [2 ** (i / 3) for i in range(3)]
ANCHORS = {
    "frcnn": lambda stride: naive.cell_anchors([8 * stride], [0.5, 1, 2]),
    "retinanet": lambda stride: naive.cell_anchors([int(4 * stride * k) for k in THIRDS], [0.5, 1, 2]),
    "fcos": lambda stride: naive.cell_anchors([stride], [1]),
}

IMAGES = [
    torch.rand(3, *shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
    for i, shape in enumerate([(96, 128), (128, 128)])
]
BOXES = [
    [[4.0, 4, 60, 80], [40, 40, 56, 57], [0, 0, 127, 95], [100.3, 70.8, 128, 96]],
    [[0.0, 0, 128, 128], [60, 0, 80, 9.25]],
]
TARGETS = [
    {
        "boxes": torch.tensor(own, dtype=torch.float64).reshape(-1, 4),
        "labels": torch.arange(len(own)) % 2 + 1,
    }
    for own in BOXES
]
EMPTY = [{"boxes": torch.empty(0, 4).double(), "labels": torch.empty(0, dtype=torch.int64)} for _ in IMAGES]


class Neck(NamedTuple):
    """A feature term: its mask and its two weights, and the strides where not all."""

    mask: str
    object: float
    background: float
    strides: tuple[int, ...] | None = None


class Head(NamedTuple):
    """A term of class scores: its two weights and temperatures."""

    object: float
    background: float
    temperatures: tuple[float, float] = (1.0, 1.0)
    proposals: Literal["teacher", "student", "anchors"] = "teacher"
    pooled: bool = False


class Recipe(NamedTuple):
    """What a distiller is meant to compute."""

    neck: Neck | None = None
    head: Head | None = None
    backbone: Neck | None = None


def detector(kind: Kind, role: Literal["student", "teacher"], **more: Any) -> nn.Module:
    """128 pixels, 3 classes with background; class scores that differ from row to row."""
    settings: dict[str, Any] = {
        "backbone": "mobilenet_v3_small" if role == "student" else "resnet10",
        "fpn_channels": 64 if kind == "fcos" else {"student": 8, "teacher": 12}[role],
        "min_size": 128,
        "max_size": 128,
        "norm": "batch",
        "trainable_layers": 5,
    }
    if kind == "frcnn":
        settings |= {"box_head_channels": 16, "box_batch_size_per_image": 32}
    build = {"frcnn": faster_rcnn, "retinanet": retinanet, "fcos": fcos}[kind]
    model = build(3, **{**settings, **more}).double()  # type: ignore[operator]
    for name, p in model.named_parameters():
        if "cls_score" in name or ("classification_head" in name and p.ndim > 1):
            nn.init.normal_(p, std=0.2)
    return model.train() if role == "student" else model.requires_grad_(False).eval()


def lively(distiller: nn.Module) -> nn.Module:
    """Adapters in float64, away from the zero they start next to."""
    for p in distiller.double().parameters():
        nn.init.normal_(p, std=0.05)
    return distiller


class Observed(NamedTuple):
    """A batch, and every tensor that the two detectors computed for it."""

    student: Captured
    """The student's training forward."""
    again: Captured
    """The student while it was distilled: what the term made it score."""
    teacher: Captured
    """The teacher while it was asked."""
    losses: dict[str, Tensor]


@cache
def forward(student: nn.Module, empty: bool = False) -> Captured:
    """One training forward of a student, on images with or without objects, which all distillers share."""
    with capture(student) as captured:
        student(IMAGES, EMPTY if empty else TARGETS)
    return captured


def observe(
    distiller: nn.Module, student: nn.Module, teacher: nn.Module, captured: Captured | None = None
) -> Observed:
    """Distil ``captured``, the usual forward if none is given."""
    captured = captured or forward(student)
    with capture(student) as again, capture(teacher) as lesson:
        losses = distiller(student, FrozenTeacher(teacher), captured, 0.0)
    return Observed(captured, again, lesson, losses)


def features(
    term: Neck,
    what: Literal["neck", "stages"],
    of: Observed,
    distiller: nn.Module,
    kinds: tuple[Kind, Kind],
    drawn: list[naive.Map] | None = None,
) -> naive.Both:
    """Eq. 4-5 without weights, from the captured maps; on masks ``drawn`` elsewhere if they are given."""
    adapters = cast(Any, distiller).terms["neck" if what == "neck" else "backbone"].adapters
    levels = LEVELS if what == "neck" else STAGES
    ours, theirs = ({stride: name for name, stride in levels[kind].items()} for kind in kinds)
    strides = [s for s in ours if s in theirs and (term.strides is None or s in term.strides)]
    maps = [getattr(of.student, what)[ours[s]] for s in strides]
    shapes = [tuple(x.shape[-2:]) for x in maps]
    boxes = [t["boxes"].tolist() for t in of.student.targets]
    cells = CELLS[kinds[0]]
    masks = (
        drawn
        or {
            "object": lambda: naive.object_mask(boxes, shapes, strides, cells),
            "gaussian": lambda: naive.gaussian_mask(boxes, shapes, strides, cells),
            "fine_grained": lambda: naive.fine_grained_mask(
                boxes, shapes, strides, [ANCHORS[kinds[0]](s) for s in strides], cells
            ),
            "full": lambda: naive.full_mask(boxes, shapes),
            "shared": lambda: naive.shared_mask(boxes, shapes, strides),
        }[term.mask]()
    )
    each = []
    for stride, own, mask in zip(strides, maps, masks, strict=True):
        conv = adapters.layers[str(stride)]
        conv = conv[0] if isinstance(conv, nn.Sequential) else conv
        with torch.no_grad():
            adapted = F.conv2d(own, conv.weight, conv.bias, padding=1)
        other = getattr(of.teacher, what)[theirs[stride]]
        each.append(
            naive.feature_loss(
                (adapted.relu() if what == "stages" else adapted).tolist(), other.tolist(), mask
            )
        )
    return naive.mean_over_levels(each)


def scores(term: Head, of: Observed) -> naive.Both:
    """Eq. 6-9 without weights, from the captured scores and boxes."""
    boxes = [t["boxes"].tolist() for t in of.student.targets]
    if term.proposals == "anchors":
        assert of.student.anchor_logits is not None
        assert of.teacher.anchor_logits is not None
        matched = [naive.match_anchors(a.tolist(), b) for a, b in zip(of.student.anchors, boxes, strict=True)]
        return naive.decoupled(
            naive.sigmoid_kl,
            of.student.anchor_logits[..., 1:].flatten(0, 1).tolist(),
            of.teacher.anchor_logits[..., 1:].flatten(0, 1).tolist(),
            [x for positive, _ in matched for x in positive],
            [x for _, negative in matched for x in negative],
            *term.temperatures,
        )
    scored = of.again if term.proposals == "teacher" else of.student
    assert scored.class_logits is not None
    assert of.teacher.class_logits is not None
    is_object = [
        x
        for proposals, own in zip(of.teacher.proposals, boxes, strict=True)
        for x in naive.proposal_is_object(proposals.tolist(), own)
    ]
    return naive.decoupled(
        naive.softmax_kl,
        scored.class_logits.tolist(),
        of.teacher.class_logits.tolist(),
        is_object,
        [not x for x in is_object],
        *term.temperatures,
        pooled=term.pooled,
    )


def expected(
    recipe: Recipe, of: Observed, distiller: nn.Module, kinds: tuple[Kind, Kind]
) -> dict[str, float]:
    """Every loss of the recipe by its name."""
    found: dict[str, tuple[Neck | Head, naive.Both]] = {}
    if recipe.neck:
        found["neck"] = recipe.neck, features(recipe.neck, "neck", of, distiller, kinds)
    if recipe.head:
        found["head"] = recipe.head, scores(recipe.head, of)
    if recipe.backbone:
        found["backbone"] = recipe.backbone, features(recipe.backbone, "stages", of, distiller, kinds)
    return {
        f"{name}_{half}": getattr(term, half) * getattr(loss, half)
        for name, (term, loss) in found.items()
        for half in ("object", "background")
        if getattr(term, half)
    }


def check(recipe: Recipe, of: Observed, distiller: nn.Module, kinds: tuple[Kind, Kind]) -> dict[str, float]:
    """Assert that the losses are those of the loops, to 1e-9, and none of them too small to tell."""
    loops = expected(recipe, of, distiller, kinds)
    assert {name: value.item() for name, value in of.losses.items()} == {
        name: pytest.approx(value, rel=1e-9, abs=1e-9) for name, value in loops.items()
    }
    assert all(value > 1e-3 for value in loops.values())
    return loops


inspected = cache(inspect_detector)
"""It looks at 256 pixels: once for a detector is enough."""


def once() -> AbstractContextManager[Any]:
    """Inside, the distiller inspects no detector twice."""
    return patch("defeat.distill.distiller.inspect_detector", inspected)


def build_distiller(student: nn.Module, teacher: nn.Module, **terms: Any) -> nn.Module:
    """A distiller of these terms in float64, with lively adapters."""
    with once():
        return lively(Distiller(student, teacher, terms=terms))

"""A teacher that knows some of the classes alone teaches the class scores of these."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors import Captured, FrozenTeacher
from defeat.detectors.heads import Assigned, Proposals
from defeat.distill import DistillBatch
from defeat.distill.terms import AnchorTerm, HeadTerm

KNOWN = (1, 3)
SPEC: Any = SimpleNamespace(head="proposals", neck=())
ANCHORS: Any = SimpleNamespace(head="anchors", neck=(), fixed_strides=False)
WEIGHTS = {
    "object_weight": 2.0,
    "background_weight": 3.0,
    "object_temperature": 2.0,
    "background_temperature": 1.5,
}


def rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() * 2


def batch(**captured: Any) -> DistillBatch:
    seen = Captured(**captured)
    return DistillBatch(nn.Identity(), FrozenTeacher(nn.Linear(1, 1), KNOWN), seen, Captured())


def softmax_divergence(student: list[float], teacher: list[float], temperature: float) -> float:
    """KL of the distributions over class 1, class 3 and anything else, each tempered."""

    def distribution(logits: list[float]) -> list[float]:
        total = sum(math.exp(x) for x in logits)
        p = [math.exp(x) / total for x in logits]
        powers = [x ** (1 / temperature) for x in (p[1], p[3], p[0] + p[2] + p[4])]
        return [x / sum(powers) for x in powers]

    pairs = zip(distribution(teacher), distribution(student), strict=True)
    return temperature**2 * sum(q * math.log(q / p) for q, p in pairs)


def test_the_box_head_learns_the_known_classes_and_anything_else() -> None:
    student, teacher = rows(6, 5, seed=0), rows(6, 5, seed=1)
    labels = torch.tensor([0, 1, 2, 3, 0, 4])  # those of 2 and 4 are objects that the teacher does not know
    term = HeadTerm(SPEC, SPEC, proposals="student", **WEIGHTS)
    with (
        patch("defeat.distill.terms.head.label_proposals", return_value=Proposals([], labels)),
        patch.object(FrozenTeacher, "box_head_logits", return_value=teacher),
    ):
        losses = term(batch(class_logits=student))
    each = {
        t: [softmax_divergence(s, q, t) for s, q in zip(student.tolist(), teacher.tolist(), strict=True)]
        for t in (2.0, 1.5)
    }
    assert losses["object"].item() == pytest.approx(2 * (each[2.0][1] + each[2.0][3]) / 2)
    assert losses["background"].item() == pytest.approx(3 * (each[1.5][0] + each[1.5][4]) / 2)


def test_anchors_learn_the_known_classes() -> None:
    student, teacher = rows(1, 5, 5, seed=2), rows(1, 5, 5, seed=3)
    labels = torch.tensor([[0, 3, 2, 1, 0]])
    negative = torch.tensor([[True, False, False, False, False]])  # the last one is neither
    term = AnchorTerm(ANCHORS, ANCHORS, **WEIGHTS)
    with (
        patch(
            "defeat.distill.terms.anchors.assign_anchors", return_value=Assigned(labels > 0, negative, labels)
        ),
        patch.object(FrozenTeacher, "anchor_logits", return_value=teacher),
    ):
        losses = term(batch(anchor_logits=student))

    def divergence(anchor: int, temperature: float) -> float:
        total = 0.0
        for c in KNOWN:
            q, p = (1 / (1 + math.exp(-float(x[0, anchor, c]) / temperature)) for x in (teacher, student))
            total += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        return temperature**2 * total

    assert losses["object"].item() == pytest.approx(2 * (divergence(1, 2.0) + divergence(3, 2.0)) / 2)
    assert losses["background"].item() == pytest.approx(3 * divergence(0, 1.5))

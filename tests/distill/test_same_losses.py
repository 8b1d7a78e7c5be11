"""Making a step faster does not change its numbers: the losses and gradients are those on record.

The record, losses_on_record.json, was made before anything was made faster, by running this file as a script.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from defeat.config import build, conf_dir
from defeat.detectors import Captured, FrozenTeacher, capture
from tests.helpers.agree import IMAGES, TARGETS, Kind, detector, once
from tests.helpers.distillation import distiller_config

RECORD = Path(__file__).with_name("losses_on_record.json")
DISTILLERS = sorted(path.stem for path in (conf_dir() / "distiller").glob("*.yaml"))


class Forward(NamedTuple):
    """One training forward of a student, which all distillers share."""

    student: nn.Module
    teacher: FrozenTeacher
    captured: Captured
    detection: dict[str, Tensor]
    random_state: Tensor
    """As the forward left it."""


@cache
def forward(kind: Kind) -> Forward:
    torch.manual_seed(1)
    student, teacher = detector(kind, "student"), detector(kind, "teacher")
    torch.manual_seed(2)  # samplers, and masks that draw random numbers
    with capture(student) as captured:
        detection = student(IMAGES, TARGETS)
    return Forward(student, FrozenTeacher(teacher), captured, detection, torch.get_rng_state())


def step(name: str) -> dict[str, float]:
    """Losses of one batch in float64, and the norm of the gradients of student and adapters."""
    student, teacher, captured, detection, random_state = forward(
        "retinanet" if "retinanet" in name else "frcnn"
    )
    with once():
        distiller = build(distiller_config(name))(student, teacher.detector)
    for p in distiller.double().parameters():  # numbers that no version of torch draws differently
        p.data.copy_(0.05 * torch.arange(p.numel()).double().sin().view_as(p))
    torch.set_rng_state(random_state)
    losses = {**detection, **distiller(student, teacher, captured, 0.0)}
    student.zero_grad()
    torch.stack(list(losses.values())).sum().backward(retain_graph=True)
    learning = [p.grad.flatten() for m in (student, distiller) for p in m.parameters() if p.grad is not None]
    return {k: v.item() for k, v in losses.items()} | {"gradient": torch.cat(learning).norm().item()}


@pytest.mark.parametrize("name", DISTILLERS)
def test_losses_and_gradients_are_those_on_record(name: str) -> None:
    assert step(name) == pytest.approx(json.loads(RECORD.read_text())[name], rel=1e-6, abs=1e-9)


if __name__ == "__main__":
    RECORD.write_text(json.dumps({name: step(name) for name in DISTILLERS}, indent=1) + "\n")

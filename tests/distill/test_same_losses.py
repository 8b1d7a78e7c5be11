"""Making a step faster does not change its numbers: the losses and gradients are those on record.

The record, losses_on_record.json, was made before anything was made faster, by running this file as a script.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from defeat.config import build, compose_config, conf_dir
from defeat.detectors import FrozenTeacher, capture
from tests.helpers.agree import IMAGES, TARGETS, Kind, detector, once

RECORD = Path(__file__).with_name("losses_on_record.json")
DISTILLERS = sorted(path.stem for path in (conf_dir() / "distiller").glob("*.yaml"))


def step(name: str) -> dict[str, float]:
    """Losses of one batch in float64, and the norm of the gradients of student and adapters."""
    kind: Kind = "retinanet" if "retinanet" in name else "frcnn"
    torch.manual_seed(1)
    student, teacher = detector(kind, "student"), detector(kind, "teacher")
    with once():
        distiller = build(compose_config("train", [f"distiller={name}"]).distiller)(student, teacher)
    for p in distiller.double().parameters():  # numbers that no version of torch draws differently
        p.data.copy_(0.05 * torch.arange(p.numel()).double().sin().view_as(p))
    torch.manual_seed(2)  # samplers, and masks that draw random numbers
    with capture(student) as captured:
        detection = student(IMAGES, TARGETS)
    losses = {**detection, **distiller(student, FrozenTeacher(teacher), captured, 0.0)}
    torch.stack(list(losses.values())).sum().backward()
    learning = [p.grad.flatten() for m in (student, distiller) for p in m.parameters() if p.grad is not None]
    return {k: v.item() for k, v in losses.items()} | {"gradient": torch.cat(learning).norm().item()}


@pytest.mark.parametrize("name", DISTILLERS)
def test_losses_and_gradients_are_those_on_record(name: str) -> None:
    assert step(name) == pytest.approx(json.loads(RECORD.read_text())[name], rel=1e-6, abs=1e-9)


if __name__ == "__main__":
    RECORD.write_text(json.dumps({name: step(name) for name in DISTILLERS}, indent=1) + "\n")

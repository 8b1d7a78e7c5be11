"""Under autocast the networks and adapters run in half precision, the losses in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from defeat.config import build, conf_dir
from defeat.detectors import Captured, FrozenTeacher, capture
from defeat.detectors.heads import Proposals
from defeat.distill import AdaptedMaps, DistillBatch, Distiller
from defeat.distill.terms import head
from tests.helpers.agree import BOXES, IMAGES, Kind, detector, lively, once
from tests.helpers.distillation import distiller_config

DISTILLERS = sorted(path.stem for path in (conf_dir() / "distiller").glob("*.yaml"))


@cache
def pair(kind: Kind) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return detector(kind, "student").float(), detector(kind, "teacher").float()


@cache
def forwards(kind: Kind, dtype: torch.dtype) -> DistillBatch:
    """A batch as both see it under autocast."""
    student, teacher = pair(kind)
    targets = [{"boxes": torch.tensor(own), "labels": torch.arange(len(own)) % 2 + 1} for own in BOXES]
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype),
        capture(student) as captured,
        capture(teacher) as teacher_captures,
    ):
        student([image.float() for image in IMAGES], targets)
        teacher.get_submodule("backbone")(captured.images)
    return DistillBatch(student, FrozenTeacher(teacher), captured, teacher_captures)


def widened(found: Any) -> Any:
    return apply_to_collection(found, Tensor, lambda x: x.float() if x.is_floating_point() else x)


class Tape:
    """Everything that terms get from detectors and adapters: kept when it is made, given again in float32."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.replays = False

    @contextmanager
    def between(self) -> Iterator[None]:
        with (
            patch.object(AdaptedMaps, "forward", self._taped(AdaptedMaps.forward, list)),
            patch.object(head, "box_head_logits", self._taped(head.box_head_logits)),
            patch.object(FrozenTeacher, "sample_proposals", self._taped(FrozenTeacher.sample_proposals)),
            patch.object(FrozenTeacher, "box_head_logits", self._taped(FrozenTeacher.box_head_logits)),
            patch.object(FrozenTeacher, "anchor_logits", self._taped(FrozenTeacher.anchor_logits)),
        ):
            yield

    def _taped(
        self, function: Callable[..., Any], unroll: Callable[[Any], Any] = lambda x: x
    ) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if self.replays:
                return widened(self.kept.pop(0))
            self.kept.append(unroll(function(*args)))
            return self.kept[-1]

        return call


CASES = [(name, torch.bfloat16) for name in DISTILLERS] + [
    (name, torch.float16)
    for name in ("defeat", "defeat_retinanet_head", "pkd", "cwd")  # every kind of term
]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_losses_under_autocast_are_those_of_float32(name: str, dtype: torch.dtype) -> None:
    kind: Kind = "retinanet" if "retinanet" in name else "frcnn"
    with once():
        distiller: Distiller = build(distiller_config(name))(*pair(kind))
    lively(distiller).float()
    both, tape = forwards(kind, dtype), Tape()
    with torch.no_grad(), tape.between():
        torch.manual_seed(2)  # a mask may draw random numbers
        with torch.autocast("cpu", dtype):
            found = distiller.term_losses(both)
        features = [x for kept in tape.kept if not isinstance(kept, Proposals) for x in tensors(kept)]
        tape.replays = True
        torch.manual_seed(2)
        expected = distiller.term_losses(
            both._replace(student_captures=widened(both.student_captures), teacher_captures=Captured())
        )
    assert features
    assert {x.dtype for x in features} == {dtype}
    assert not tape.kept
    assert found.keys() == expected.keys()
    for loss, value in found.items():
        assert value.dtype == torch.float32
        assert value.sum() > 1e-3
        torch.testing.assert_close(value, expected[loss], rtol=1e-6, atol=0)


def tensors(found: Any) -> list[Tensor]:
    every: list[Tensor] = []
    apply_to_collection(found, Tensor, every.append)
    return every

"""Detectors are timed in turn, from pictures to boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors import fcos
from defeat.export import speed
from defeat.export.speed import Speed, Timed, measure
from defeat.export.teacher import STUDENT, TEACHER, APs, sentence
from defeat.report.student_cost import count

IMAGES = [torch.full((3, 40, 50), i, dtype=torch.uint8) for i in range(8)]


class Recorder(nn.Module):
    """Notes who is called with how many pictures."""

    calls: list[tuple[str, int]] = []  # noqa: RUF012 - of all recorders

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert all(image.max() <= 1 for image in images)
        self.calls.append((self.name, len(images)))
        none = torch.empty(0)
        return [{"boxes": none, "scores": none, "labels": none}] * len(images)


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(Recorder, "calls", [])
    found = measure({name: Recorder(name) for name in "ab"}, IMAGES)
    # a call beforehand, then the least number of rounds
    assert Recorder.calls == [(name, batch) for batch in (1, 8) for _ in range(6) for name in "ab"]
    assert [(t.name, t.batch, len(t.seconds)) for t in found.timed] == [
        *(("a", 1, 5), ("b", 1, 5)),
        *(("a", 8, 5), ("b", 8, 5)),
    ]
    assert (found.height, found.width, found.costs) == (40, 50, {})


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    return fcos(3, backbone="resnet10", fpn_channels=64, min_size=40, max_size=50).eval()


@pytest.mark.slow
def test_a_compiled_copy_is_timed(detector: nn.Module, monkeypatch: pytest.MonkeyPatch):
    # torch's own tracer without a compiler behind it, which takes seconds
    whole = speed.compile_backbone
    monkeypatch.setattr(speed, "compile_backbone", lambda d, mode: whole(d, mode, backend="eager"))
    found = measure({"student, PyTorch": detector}, IMAGES, compiled="student, PyTorch")
    assert {timed.name for timed in found.timed} == {"student, PyTorch", "student, torch.compile"}
    assert found.costs == {"student, PyTorch": count(detector)}


def test_a_copy_that_cannot_be_compiled_is_told(detector: nn.Module, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(speed, "compile_backbone", fail)
    found = measure({"student, PyTorch": detector}, IMAGES, compiled="student, PyTorch")
    assert {timed.name for timed in found.timed} == {"student, PyTorch"}
    assert found.notes == ["student, torch.compile: not timed, as torch.compile fails here (no C++ compiler)"]


def test_figures_of_a_contender():
    timed = Timed("x", 8, [0.4, 0.1, 0.2, 0.3, 0.5])
    assert timed.median == 0.3
    assert timed.ninetieth == pytest.approx(0.46)  # 0.4 + 0.6 * (0.5 - 0.4)
    rows = Speed([timed], [], 40, 50, 2, {}).table().rows
    assert rows == [("x", 8, "300.0", "460.0", "26.67")]


def test_the_sentence():
    timed = [Timed(STUDENT, 1, [0.1]), Timed("student, ONNX Runtime", 1, [0.05]), Timed(TEACHER, 1, [0.3])]
    told = sentence(Speed(timed, [], 40, 50, 2, {}), APs(0.2, 0.35, "9 pictures"))
    assert told == (
        "The student is 3.0 times as fast as its teacher in PyTorch (6.0 times with ONNX Runtime) with one "
        "picture at a time, and 0.150 AP behind it (0.200, 0.350) on 9 pictures."
    )
    assert sentence(Speed(timed[:2], [], 40, 50, 2, {}), None) is None

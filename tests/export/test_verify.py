"""The comparison of a graph with the student: what it lets pass and what it reports."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors.adapted import PixelTransform
from defeat.export.check import Check
from defeat.export.student import TrainedStudent
from defeat.export.verify import verify
from defeat.types import Prediction

PICTURES = [torch.full((3, 50, 80), 100, dtype=torch.uint8), torch.full((3, 60, 60), 30, dtype=torch.uint8)]


class Finder(nn.Module):
    """Finds three boxes in every picture, the last if its first value reaches a limit, with an error."""

    def __init__(self, limit: float = -1.0, box: float = 0.0, score: float = 0.0, label: int = 0) -> None:
        super().__init__()
        self.transform = PixelTransform(64, 96, [0.0] * 3, [1.0] * 3)
        self.limit = limit
        self.error = box, score, label

    def forward(self, images: list[Tensor]) -> list[Prediction]:
        box, score, label = self.error
        boxes = torch.tensor([[2.0, 3, 20, 30], [5, 5, 40, 30], [1, 1, 9, 9]]) + torch.tensor([0, 0, 0, box])
        scores = torch.tensor([0.9, 0.5, 0.3]) + torch.tensor([0, score, 0])
        labels = torch.tensor([1, 2, 1]) + torch.tensor([label, 0, 0])
        found = []
        for image in images:
            kept = slice(3 if image[0, 0, 0] >= self.limit else 2)
            found.append(Prediction(boxes=boxes[kept], scores=scores[kept], labels=labels[kept]))
        return found


def compared(student: Finder, graph: Finder) -> list[Check]:
    of = TrainedStudent(student, ("a", "b"), (1, 2), Path("best.ckpt"), "0" * 64, None)
    with patch("defeat.export.verify.load_onnx", return_value=graph):
        return verify(of, Path("student.onnx"), PICTURES, format="onnx")


def test_small_differences_pass_and_are_measured():
    for check in compared(Finder(), Finder(box=0.25, score=-0.0005)):
        assert check.passed
        assert (check.boxes, check.scores) == (0.25, pytest.approx(0.0005, rel=1e-3))


@pytest.mark.parametrize("error", [{"box": 0.6}, {"score": 0.002}, {"label": 1}, {"limit": 2.0}])
def test_another_box_score_label_or_number_fails_everywhere(error: dict[str, float]):
    assert not any(check.passed for check in compared(Finder(), Finder(**error)))  # type: ignore[arg-type]


def test_a_student_that_finds_nothing_is_told(caplog: pytest.LogCaptureFixture):
    class Blind(Finder):
        def forward(self, images: list[Tensor]) -> list[Prediction]:
            return [
                Prediction(
                    boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long)
                )
                for _ in images
            ]

    compared(Finder(), Finder())
    assert not caplog.records
    assert all(check.passed for check in compared(Blind(), Blind()))
    assert "finds nothing" in caplog.text


def test_a_detection_that_noise_takes_away_is_a_tie():
    tie = Finder(limit=100 / 255)  # exactly the value of the first picture
    checks = compared(tie, Finder(limit=100.001 / 255))
    assert all(check.passed for check in checks)
    assert "1 tie" in checks[0].note
    assert all(check.passed for check in compared(Finder(limit=100.001 / 255), tie))
    assert not compared(Finder(limit=99 / 255), Finder(limit=100.5 / 255))[0].passed
    assert not compared(Finder(limit=100.5 / 255), Finder(limit=99 / 255))[0].passed

"""The student beside the teacher of its distillation: time and AP."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from defeat.errors import DefeatError
from defeat.export.figures import Figures, read_figures
from defeat.export.sample import Sample, average_precision
from defeat.export.speed import Speed
from defeat.export.student import TrainedStudent, read_student
from defeat.io.text import counted, one_line
from defeat.run.checkpoint_detector import build_teacher

STUDENT, TEACHER = "student, PyTorch", "teacher, PyTorch"


class APs(NamedTuple):
    """The AP of student and teacher on the same pictures."""

    student: float
    teacher: float
    pictures: str


def read_teacher(student: TrainedStudent, notes: list[str]) -> nn.Module | None:
    """Build the teacher of a distilled run; None, with a note, where there is none or its file is gone."""
    if student.file is None or not (student.config or {}).get("teacher"):
        notes.append("there is no teacher to compare with: this was no distillation")
        return None
    try:
        return build_teacher(student.file, student.classes).float().cpu().eval()
    except DefeatError as error:
        notes.append(one_line(f"the teacher is not compared: {error}"))
        return None


def compare_ap(
    student: TrainedStudent, figures: Figures | None, teacher: nn.Module, sample: Sample | None
) -> APs | None:
    """Find both APs on the same pictures: those of both trainings' validation, or a sample.

    Returns:
        None where neither is known.
    """
    known = _of_trainings(student, figures)
    if known is not None or sample is None:
        return known
    pictures = f"{counted(len(sample.images), 'pictures')} of {sample.whole} for validation"
    return APs(
        average_precision(student.detector, sample, student),
        average_precision(teacher, sample, student),
        pictures,
    )


def _of_trainings(student: TrainedStudent, figures: Figures | None) -> APs | None:
    """Both APs, if the teacher's checkpoint is there and was validated on the same data."""
    own = student.record.get("defeat") or {}
    source = Path(str((own.get("teacher") or {}).get("source")))
    if figures is None or not source.is_file():
        return None
    try:
        teacher = read_student(source)
    except DefeatError:  # weights of another program
        return None
    of_teacher = read_figures(teacher, None)
    same = [trained.record.get("defeat", {}).get("data", {}).get("val") for trained in (student, teacher)]
    if (
        of_teacher is None
        or same[0] is None
        or same[0] != same[1]
        or set(teacher.classes) != set(student.classes)
    ):
        return None
    return APs(figures.coco["AP"], of_teacher.coco["AP"], "the validation split of both trainings")


def sentence(speed: Speed, aps: APs | None) -> str | None:
    """Say how much faster the student is, and how much AP that costs; None without a teacher."""
    of_teacher, of_student = speed.median(TEACHER), speed.median(STUDENT)
    if of_teacher is None or of_student is None:
        return None
    words = [f"The student is {of_teacher / of_student:.1f} times as fast as its teacher in PyTorch"]
    fastest = min(
        (t for t in speed.timed if t.batch == 1 and t.name != TEACHER), key=lambda timed: timed.median
    )
    if fastest.name != STUDENT:
        words.append(f"({of_teacher / fastest.median:.1f} times with {fastest.name.partition(', ')[2]})")
    words.append("with one picture at a time")
    if aps is None:
        return f"{' '.join(words)}; the AP of the teacher on the same pictures is not known."
    behind = aps.teacher - aps.student
    place = "behind" if behind >= 0 else "ahead of"
    both = f"({aps.student:.3f}, {aps.teacher:.3f})"
    return f"{' '.join(words)}, and {abs(behind):.3f} AP {place} it {both} on {aps.pictures}."

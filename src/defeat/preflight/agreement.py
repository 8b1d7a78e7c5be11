"""Check that weights, pixels and feature maps of student and teacher fit together, as far as files say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchvision.ops import FrozenBatchNorm2d

from defeat.detectors import Detector, LoadReport, inspect_detector
from defeat.io.text import few
from defeat.preflight.finding import Finding, Problem
from defeat.preflight.samples import transform_of
from defeat.training.run import Distillation, Run


def check_weights(student: Detector, teacher: Detector | None) -> Finding:
    """Every key of the detectors came from a file, and every key of a file was used.

    A file that lacks keys is refused when it is read. One that has too many is not: the first layers of a
    deeper network fill a shallower one whole.
    """
    roles = [("student", student)] + ([("teacher", teacher)] if teacher else [])
    summary = "; ".join(f"{role} {_coverage(detector)}" for role, detector in roles)
    problems = [problem for role, detector in roles for problem in _weight_problems(role, detector)]
    return Finding("weights", summary, problems)


def _coverage(detector: Detector) -> str:
    if detector.report is None:
        return "starts from random weights"
    part = "" if detector.source else " of the backbone"
    return f"{len(detector.report.matched)} keys{part} from {Path(detector.report.source).name}"


def _weight_problems(role: str, detector: Detector) -> Iterator[Problem]:
    report = detector.report
    if report is None:
        if any(isinstance(module, FrozenBatchNorm2d) for module in detector.model.modules()):
            yield Problem(
                f"the {role} starts from random weights, and its frozen BatchNorm layers never learn theirs",
                f"set {role}.backbone_weights, or {role}.model.norm=batch",
                severe=False,
            )
    elif detector.source is not None:
        yield from _coverage_problems(role, detector, report)
    elif any(
        isinstance(module, FrozenBatchNorm2d) and not name.startswith("backbone.body.")
        for name, module in detector.model.named_modules()
    ):
        yield Problem(
            f"the {role} has weights of its backbone alone, and the frozen BatchNorm layers of its heads "
            "never learn theirs",
            f"set {role}.weights, {role}.model.norm=batch, or {role}.model.heads=v1",
            severe=False,
        )
    if detector.infinite:  # the reader lets infinite variances pass, and refuses all else
        yield Problem(
            f"the {role} has infinite values in {few(detector.infinite)}, too large for the float16 that "
            "they were stored in: their channels are dead",
            "take the file in float32",
            severe=False,
        )


def _coverage_problems(role: str, detector: Detector, report: LoadReport) -> Iterator[Problem]:
    deeper = [key for key in report.unexpected if key.startswith("backbone.")]
    if deeper:
        yield Problem(
            f"{report.source} has {len(deeper)} keys that the {role}'s backbone lacks ({few(deeper)}): it is "
            "of a deeper network",
            f"set {role}.model to the network that the file is of",
        )
    elif report.unexpected:
        yield Problem(
            f"{report.source} has {len(report.unexpected)} keys that the {role} lacks "
            f"({few(report.unexpected)})",
            f"see that {role}.model is the network that the file is of",
            severe=False,
        )
    if not detector.whole and role == "teacher":  # a student's learns
        yield Problem(
            f"the {role}'s classification head is new ({few([*report.missing, *report.mismatched])})",
            f"leave {role}.new_head=true out unless only its features are wanted",
            severe=False,
        )


def check_normalisation(run: Run, distillation: Distillation) -> Finding:
    """The pixels that reach the teacher are scaled as its file says that it was trained.

    That the two detectors scale them alike is a condition of the distiller.
    """
    student = normalisation(transform_of(run.module.student))
    teacher = normalisation(_settings(distillation.teacher))
    problems = [
        Problem(
            f"the student normalises pixels by {name} {student[name]}, and the teacher was trained with "
            f"{value}",
            f"set {name} of the student and of the teacher to that",
        )
        for name, value in teacher.items()
        if student[name] != value
    ]
    return Finding("normalisation", "mean {image_mean}, std {image_std}".format_map(student), problems)


def normalisation(source: Any) -> dict[str, list[float]]:
    """Mean and standard deviation by which a transform, or the settings of one, scales pixels."""
    names = ("image_mean", "image_std")
    return {name: list(value) for name in names if (value := getattr(source, name, None)) is not None}


class Size(NamedTuple):
    """The size to which a detector resizes its images for evaluation."""

    min_size: int
    max_size: int
    fixed: tuple[int, int] | None

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"exactly {self.fixed[0]} x {self.fixed[1]}"
        return f"min_size {self.min_size}, max_size {self.max_size}"


def check_resize(run: Run, distillation: Distillation) -> Finding:
    """The student's images, which are what the teacher sees, are as large as those of its training."""
    student = evaluation_size(transform_of(run.module.student))
    teacher, source = (
        evaluation_size(transform_of(distillation.frozen_teacher.detector)),
        "is configured with",
    )
    settings = _settings(distillation.teacher)
    if settings.min_size is not None and settings.max_size is not None:
        teacher, source = Size(_last(settings.min_size), settings.max_size, None), "was trained at"
    if student == teacher:
        return Finding("resize", str(student))
    remedy = f"set {_keys('student', teacher)}, or take a teacher that was trained at the student's size"
    if source == "is configured with":
        remedy = f"set {_keys('student', teacher)}, or {_keys('teacher', student)}"
    if teacher.fixed or student.fixed:
        remedy = "choose two detectors of one input size"
    problem = Problem(
        f"the student's images, which the teacher is shown, have {student}, but the teacher {source} "
        f"{teacher}",
        remedy,
    )
    return Finding("resize", f"student {student}; teacher {teacher}", [problem])


def _keys(role: str, size: Size) -> str:
    return f"{role}.model.min_size={size.min_size} {role}.model.max_size={size.max_size}"


def check_padding(run: Run, distillation: Distillation) -> Finding:
    """Batches are padded to the same multiple of pixels."""
    student = transform_of(run.module.student).size_divisible
    teacher = transform_of(distillation.frozen_teacher.detector).size_divisible
    problem = Problem(
        f"the student pads its images to multiples of {student} pixels and the teacher to {teacher}: borders "
        "look different from what it was trained on",
        "give both the same size_divisible",
    )
    return Finding("padding", f"multiples of {student}", [problem] if student != teacher else [])


def check_levels(run: Run, distillation: Distillation) -> Finding:
    """Every term compares all levels of both detectors, or those that the configuration names."""
    student = inspect_detector(run.module.student)
    teacher = distillation.frozen_teacher.inspect()
    terms = run.config["distiller"]["terms"]
    problems = []
    for name, term in distillation.distiller.named_terms():
        if not term.levels or (terms.get(name) or {}).get("strides") is not None:
            continue
        student_strides = {level.stride for level in getattr(student, term.maps)}
        teacher_strides = {level.stride for level in getattr(teacher, term.maps)}
        if student_strides != teacher_strides:
            shared = sorted(student_strides & teacher_strides)
            problems.append(
                Problem(
                    f"{name} compares the {term.maps} of strides {_plain(shared)} alone: the student "
                    f"has {_plain(student_strides)} and the teacher {_plain(teacher_strides)}",
                    "give both the same returned_layers, or name the strides to compare, "
                    f"distiller.terms.{name}.strides={shared}".replace(" ", ""),
                    severe=student.head == teacher.head,
                )
            )
    student_neck, teacher_neck = (_plain(level.stride for level in spec.neck) for spec in (student, teacher))
    if student_neck == teacher_neck:
        return Finding("levels", f"strides {student_neck}", problems)
    return Finding("levels", f"student strides {student_neck}; teacher {teacher_neck}", problems)


def _plain(strides: Any) -> str:
    return " ".join(map(str, sorted(strides)))


class Settings(NamedTuple):
    """Settings of a detector's images that a checkpoint of this project holds; None if it does not."""

    min_size: int | Sequence[int] | None
    max_size: int | None
    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None


def _settings(detector: Detector) -> Settings:
    config = (detector.file.config if detector.file else None) or {}
    model = config.get("student", {}).get("model", {})
    return Settings(*(model.get(name) for name in Settings._fields))


def evaluation_size(transform: Any) -> Size:
    """The size to which a ``GeneralizedRCNNTransform`` resizes images for evaluation."""
    return Size(_last(transform.min_size), transform.max_size, transform.fixed_size)


def _last(sizes: int | Sequence[int]) -> int:
    """The size of evaluation; training draws from all."""
    return sizes if isinstance(sizes, int) else sizes[-1]

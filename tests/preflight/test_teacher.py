"""The teacher on the student's images: figures, and under which names objects are found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from defeat.data.scenes.shapes import CLASSES
from defeat.detectors.class_order import reorder
from defeat.evaluation.image_result import ImageResult
from defeat.preflight.finding import Finding
from defeat.preflight.teacher import Expected, check_teacher, confusion_matrix, renamed_classes
from defeat.training.run import Run
from tests.helpers.built_runs import SHIPPED, built_run, severe

LENIENT = Expected(0.05, None, 0.1)


def look(run: Run, expected: Expected = LENIENT, seconds: float = 100) -> tuple[Finding, Finding]:
    """The findings on classes and teacher, on 24 images."""
    assert run.distillation is not None
    classes, teacher = check_teacher(run, run.distillation, expected, images=24, seconds=seconds)
    assert (classes.check, teacher.check) == ("classes", "teacher")
    return classes, teacher


@pytest.fixture(scope="module")
def found(healthy: Run) -> tuple[Finding, Finding]:
    return look(healthy)


def test_a_good_teacher_passes_with_the_figures_it_is_known_for(found: tuple[Finding, Finding]) -> None:
    classes, teacher = found
    assert (classes.result, teacher.result) == ("ok", "ok")
    assert teacher.figures["ap"] == pytest.approx(0.48, abs=0.08)
    assert teacher.figures["ap50"] == pytest.approx(0.67, abs=0.08)
    assert teacher.figures["images"] == 24


def shuffled(rows: Sequence[int], path: Path) -> str:
    """The shipped teacher as a plain state_dict with its classes in another order."""
    torch.save(reorder(load_file(SHIPPED), [0, *rows], len(CLASSES) + 1, "teacher"), path)
    return f"teacher.weights={path}"


def test_shuffled_classes_are_found_and_named(tmp_path: Path, pictures: Path) -> None:
    order = [2, 3, 4, 5, 6, 7, 8, 1]
    classes, teacher = look(built_run(tmp_path / "run", pictures, shuffled(order, tmp_path / "t.pth")))
    text = severe(classes)
    assert "the teacher has its classes in another order" in text
    assert "square is found as disc" in text
    assert "+data.classes=[...]" in text
    assert teacher.result == "ok", "its boxes are right, and its classes are told of already"
    ap50, boxes = teacher.figures["ap50"], teacher.figures["ap50_any_class"]
    assert ap50 is not None
    assert boxes is not None
    assert ap50 < 0.05 < 0.5 < boxes


def test_two_exchanged_classes_are_found_though_ap_is_fair(tmp_path: Path, pictures: Path) -> None:
    order = [1, 2, 3, 4, 8, 6, 7, 5]
    classes, teacher = look(built_run(tmp_path / "run", pictures, shuffled(order, tmp_path / "t.pth")))
    ap50 = teacher.figures["ap50"]
    assert ap50 is not None
    assert ap50 > 0.3
    text = severe(classes)
    assert "ring is found as arrow" in text
    assert "arrow is found as ring" in text
    assert "disc is" not in text


def test_random_weights_are_near_chance(built: Run) -> None:
    assert built.distillation is not None
    for layer in (
        built.distillation.frozen_teacher.detector.roi_heads.box_head.fc6,
        built.distillation.frozen_teacher.detector.rpn.head.cls_logits,
    ):
        torch.nn.init.normal_(layer.weight, std=0.01)
    text = severe(look(built)[1])
    assert "is near chance" in text
    assert "not a trained teacher's weights" in text


@pytest.mark.parametrize(
    ("setting", "value"),
    [("min_size", (32,)), ("image_std", [0.02, 0.02, 0.02])],
)
def test_what_the_student_makes_of_the_images_is_what_the_teacher_is_judged_on(
    built: Run, setting: str, value: object, found: tuple[Finding, Finding]
) -> None:
    setattr(built.module.student.transform, setting, value)
    _, teacher = look(built, Expected(0.05, 0.48, 0.1))
    assert "below preflight.expected_ap=0.48 by more than 0.1" in severe(teacher)
    before, after = found[1].figures["ap"], teacher.figures["ap"]
    assert before is not None
    assert after is not None
    assert after < before - 0.2
    # with its own transform it is as good as it was
    hint = next(problem.cause for problem in teacher.problems if not problem.severe)
    assert f"it reaches AP {before:.3f}" in hint


def test_an_expected_figure_that_is_reached_passes(healthy: Run) -> None:
    assert look(healthy, Expected(0.05, 0.55, 0.1))[1].result == "ok"
    assert "see that teacher.weights is the file" in severe(look(healthy, Expected(0.05, 0.9, 0.1))[1])


def test_the_time_bounds_the_images_and_one_batch_is_always_looked_at(healthy: Run) -> None:
    assert look(healthy, seconds=0)[1].figures["images"] == 8


def test_too_few_objects_refuse_nothing(tmp_path: Path, pictures: Path) -> None:
    few = built_run(tmp_path, pictures, "data.limit_val=1")
    classes, teacher = look(few, Expected(1.0, 1.0, 0.0))
    assert classes.result != "failed"
    assert teacher.result == "warning"
    assert "objects alone)" in teacher.problems[0].cause


def test_no_objects_are_a_warning(built: Run) -> None:
    split = built.data.annotations["val"]
    empty = [
        r._replace(boxes=r.boxes[:0], labels=r.labels[:0], ignore=r.ignore[:0], area=r.area[:0])
        for r in split.records
    ]
    built.data.annotations["val"] = split._replace(records=empty)
    teacher = look(built)[1]
    assert teacher.result == "warning"
    assert "none of the 24 images has an object" in teacher.problems[0].cause
    assert teacher.figures["ap"] is None


def test_a_new_head_is_not_judged(built: Run) -> None:
    assert built.teacher is not None
    new = built._replace(teacher=built.teacher._replace(whole=False))
    assert [finding.result for finding in look(new)] == ["ok", "ok"]


@pytest.mark.usefixtures("found")
def test_the_teacher_and_the_students_transform_are_left_alone(healthy: Run) -> None:
    assert healthy.distillation is not None
    assert healthy.module.student.transform.training
    assert not any(module.training for module in healthy.distillation.frozen_teacher.modules())
    assert healthy.distillation.frozen_teacher.detector.transform is not healthy.module.student.transform


# -- as what objects are found ----------------------------------------------------------------------------


def boxes(*x: float) -> Tensor:
    return torch.tensor([[a, 0, a + 10, 10] for a in x], dtype=torch.float64).reshape(-1, 4)


def image(true: dict[float, int], found: Sequence[tuple[float, float, int]], ignored: int = 0) -> ImageResult:
    """Objects of side 10 by place, and detections as (place, score, label)."""
    return ImageResult(
        boxes=boxes(*(x for x, _, _ in found)),
        scores=torch.tensor([score for _, score, _ in found], dtype=torch.float64),
        labels=torch.tensor([label for _, _, label in found], dtype=torch.int64),
        true_boxes=boxes(*true),
        true_labels=torch.tensor(list(true.values()), dtype=torch.int64),
        ignore=torch.arange(len(true)) < ignored,
        area=torch.full((len(true),), 100.0, dtype=torch.float64),
    )


def test_the_best_score_that_overlaps_names_an_object() -> None:
    # An overlap of 6 / 14 is too little, and 8 / 12 is enough.
    found = [(2.0, 0.6, 2), (0.0, 0.5, 1), (4.0, 0.9, 3), (52.0, 0.3, 1)]
    counts = confusion_matrix([image({0.0: 1, 50.0: 3, 90.0: 2}, found)], 3)
    assert counts.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_ignored_objects_and_empty_images_are_no_objects() -> None:
    images = [
        image({0.0: 1, 50.0: 2}, [(0.0, 0.9, 2), (50.0, 0.9, 2)], ignored=1),
        image({}, []),
        image({0.0: 1}, []),
    ]
    assert confusion_matrix(images, 2).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("called", "exchanged", "absorbed"),
    [
        ([[9, 1, 0], [1, 9, 0], [0, 0, 9]], [], []),
        ([[0, 9, 0], [9, 0, 0], [0, 0, 9]], [(0, 1), (1, 0)], []),
        # a rare class that a frequent one swallows is no exchange
        ([[1, 8, 0], [0, 90, 0], [0, 0, 9]], [], [(0, 1)]),
        # whether the other keeps its name cannot be told from 4 objects
        ([[1, 8, 0], [0, 4, 0], [0, 0, 9]], [(0, 1)], []),
        # too few objects; and a class that is often right
        ([[0, 4, 0], [0, 9, 0], [0, 0, 9]], [], []),
        ([[3, 7, 0], [0, 9, 0], [0, 0, 9]], [], []),
    ],
)
def test_exchanged_classes_are_told_from_swallowed_ones(
    called: list[list[int]], exchanged: list[tuple[int, int]], absorbed: list[tuple[int, int]]
) -> None:
    assert renamed_classes(torch.tensor(called)) == (exchanged, absorbed)

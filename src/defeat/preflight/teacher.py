"""Evaluate the teacher on the images that it will be shown, and compare the names of the classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from defeat.detectors import FrozenTeacher
from defeat.detectors.inference import detect
from defeat.evaluation.coco_metrics import coco_metrics
from defeat.evaluation.image_result import ImageResult, to_image_result
from defeat.evaluation.matching import NO_MATCH, best_scored_detection
from defeat.io.text import few
from defeat.preflight.agreement import evaluation_size, normalisation
from defeat.preflight.finding import Finding, Problem
from defeat.preflight.samples import chunks, spread, timed_samples, transform_of, until
from defeat.training.run import Distillation, Run

CHUNK = 8
"""Images at a time, at most, so that a slow device does not overrun its time by much."""

LEAST_OBJECTS = 20
"""With fewer of them no figure is refused."""

ENOUGH = 5
"""Objects of a class that were found, to judge its name by."""

MOSTLY, HARDLY = 0.6, 0.2
"""A class is called another one in at least the first share of cases, and itself in at most the second."""


class Expected(NamedTuple):
    """The figures that the teacher must reach on the sample, in [0, 1]."""

    least_ap50: float
    ap: float | None
    tolerance: float


class Figures(NamedTuple):
    """Figures of a detector on a sample; nan if there are no objects."""

    ap: float
    ap50: float
    ap50_any_class: float
    """Boxes alone: every class counts for every other."""
    images: int
    objects: int


def check_teacher(
    run: Run, distillation: Distillation, expected: Expected, *, images: int, seconds: float
) -> list[Finding]:
    """Evaluate the teacher on validation images as the student's transform makes them.

    Args:
        images: of the validation split, from all over it.
        seconds: after which no more are taken; one batch is, whatever it takes.

    Returns:
        The findings on ``classes`` and on the ``teacher`` as such.
    """
    names = _names(distillation)
    if not distillation.teacher.whole:
        return [
            Finding("classes", f"{names}; the classification head is new"),
            Finding("teacher", "not evaluated: the classification head is new"),
        ]
    results = _evaluate(run, distillation.frozen_teacher, transform_of(run.module.student), images, seconds)
    figures = _figures(results, run.module.classes)
    confusion = confusion_matrix(results, len(run.module.classes))
    renamed = list(_class_problems(confusion, run.module.classes, figures, expected))
    weak = list(_problems(figures, expected, renamed))
    if weak and _transforms_differ(run, distillation):
        weak.append(_with_own_transform(run, distillation, images, seconds))
    summary = (
        f"AP {figures.ap:.3f}, AP50 {figures.ap50:.3f} ({figures.ap50_any_class:.3f} whatever the class) on "
        f"{figures.images} images with {figures.objects} objects"
    )
    numbers = {name: None if math.isnan(value) else value for name, value in figures._asdict().items()}
    right = f"{int(confusion.trace())} of {int(confusion.sum())} found objects under their own name"
    return [
        Finding("classes", f"{names}; {right}", renamed),
        Finding("teacher", summary, weak, numbers),
    ]


def _names(distillation: Distillation) -> str:
    file, report = distillation.teacher.file, distillation.teacher.report
    if file is None or file.outputs is None:
        return "the teacher's file names none"
    return (report.note if report else "") or f"{len(file.outputs) - 1} named by the teacher's file"


@torch.no_grad()
def _evaluate(
    run: Run, teacher: FrozenTeacher, transform: nn.Module, images: int, seconds: float
) -> list[ImageResult]:
    detector = _with_transform(teacher.to(run.device).detector, transform)
    loader = run.data.val_dataloader()
    order = islice(spread(len(run.data.read("val").records)), images)
    samples = (sample for sample, _ in timed_samples(loader, order))
    over = until(seconds)
    results: list[ImageResult] = []
    for batch in chunks(samples, min(loader.batch_size or 1, CHUNK)):
        with run.precision(), teacher.inference():
            predictions = detect(detector, [image.to(run.device) for image in batch.images])
        results += map(to_image_result, predictions, batch.targets)
        if over():
            break
    known = teacher.known_labels
    return results if known is None else [_of_classes(result, known.cpu()) for result in results]


def _of_classes(result: ImageResult, labels: Tensor) -> ImageResult:
    """Leave out the objects of classes that a teacher does not know: it can find none of them."""
    known = torch.isin(result.true_labels, labels)
    return result._replace(
        true_boxes=result.true_boxes[known],
        true_labels=result.true_labels[known],
        ignore=result.ignore[known],
        area=result.area[known],
    )


def _with_transform(model: nn.Module, transform: nn.Module) -> nn.Module:
    """Return the detector with a copy of another's transform; all other parts are shared, not copied."""
    detector = copy.copy(model)
    detector._modules = {**model._modules, "transform": copy.deepcopy(transform).eval()}
    return detector


def _figures(results: Sequence[ImageResult], classes: Sequence[str]) -> Figures:
    coco, _ = coco_metrics(results, classes)
    alike = [
        result._replace(
            labels=torch.ones_like(result.labels), true_labels=torch.ones_like(result.true_labels)
        )
        for result in results
    ]
    boxes, _ = coco_metrics(alike, ["object"])
    objects = sum(int((~result.ignore).sum()) for result in results)
    return Figures(coco["AP"], coco["AP50"], boxes["AP50"], len(results), objects)


def confusion_matrix(results: Sequence[ImageResult], classes: int) -> Tensor:
    """Count the classes as which the objects are found, by the best detection with an IoU of 0.5 or more.

    Returns:
        (K, K) int64, true class by predicted class. Objects that nothing overlaps are not in it.
    """
    counts = np.zeros((classes, classes), dtype=np.int64)
    for result in results:
        counted = ~result.ignore
        overlap = box_iou(result.boxes, result.true_boxes[counted]).numpy()  # (D, G)
        best = best_scored_detection(overlap, result.scores.numpy(), threshold=0.5)  # (G,)
        matched = best != NO_MATCH
        true, predicted = result.true_labels[counted].numpy()[matched], result.labels.numpy()[best[matched]]
        np.add.at(counts, (true - 1, predicted - 1), 1)
    return torch.from_numpy(counts)


def _class_problems(
    confusion: Tensor, classes: Sequence[str], figures: Figures, expected: Expected
) -> Iterator[Problem]:
    exchanged, absorbed = renamed_classes(confusion)
    remedy = (
        "use a checkpoint of this project, which names its classes, or give the data's classes in the order "
        "of the teacher's, +data.classes=[...]"
    )

    def say(pairs: Sequence[tuple[int, int]]) -> str:
        words = [
            f"{classes[a]} is found as {classes[b]} ({int(confusion[a, b])} of {int(confusion[a].sum())})"
            for a, b in pairs
        ]
        return few(words, 4)

    if exchanged:
        yield Problem(f"the teacher has its classes in another order: {say(exchanged)}", remedy)
    elif figures.ap50 < expected.least_ap50 <= figures.ap50_any_class / 2:
        yield Problem(
            f"the teacher's boxes are right (AP50 {figures.ap50_any_class:.3f} whatever the class) and its "
            f"classes are not ({figures.ap50:.3f}): it has them in another order",
            remedy,
            severe=figures.objects >= LEAST_OBJECTS,
        )
    if absorbed:
        yield Problem(
            f"the teacher does not tell some classes apart: {say(absorbed)}",
            "see that it was trained on these classes",
            severe=False,
        )


def renamed_classes(confusion: Tensor) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Classes that go by the name of another one.

    Returns:
        Pairs of true and found class: those in another order, and those that a class which keeps its own
        name has swallowed, as a weak teacher does with what is rare.
    """
    totals = confusion.sum(1)
    shares = confusion / totals.clamp_min(1).unsqueeze(1)
    exchanged: list[tuple[int, int]] = []
    absorbed: list[tuple[int, int]] = []
    for a in (totals >= ENOUGH).nonzero().flatten().tolist():
        b = int(shares[a].argmax())
        if b != a and shares[a, b] >= MOSTLY and shares[a, a] <= HARDLY:
            keeps = totals[b] >= ENOUGH and shares[b, b] > HARDLY
            (absorbed if keeps else exchanged).append((a, b))
    return exchanged, absorbed


def _problems(figures: Figures, expected: Expected, renamed: Sequence[Problem]) -> Iterator[Problem]:
    if not figures.objects:
        yield Problem(
            f"none of the {figures.images} images has an object, so the teacher cannot be judged",
            "raise preflight.images",
            severe=False,
        )
        return
    severe = figures.objects >= LEAST_OBJECTS
    doubt = "" if severe else f" (on {figures.objects} objects alone)"
    # Where classes have other names, that is said already, and boxes show whether the rest is right.
    reached = figures.ap50_any_class if renamed else figures.ap50
    if reached < expected.least_ap50:
        yield Problem(
            f"AP50 {reached:.3f} is near chance{doubt}: these are not a trained teacher's weights, or it was "
            "trained on other data or on images of another size or normalisation",
            "evaluate it by itself with defeat-eval checkpoint=<its weights>, and see that "
            "teacher.weights, teacher.model and data are those of its training",
            severe,
        )
    if expected.ap is not None and figures.ap < expected.ap - expected.tolerance:
        yield Problem(
            f"AP {figures.ap:.3f} is below preflight.expected_ap={expected.ap:g} by more than "
            f"{expected.tolerance:g}{doubt}",
            "see that teacher.weights is the file of that figure and that the student's images have the size "
            "of its training; the sample is preflight.images images",
            severe,
        )


def _transforms_differ(run: Run, distillation: Distillation) -> bool:
    models = (run.module.student, distillation.frozen_teacher.detector)
    student, teacher = (
        (evaluation_size(transform), normalisation(transform)) for transform in map(transform_of, models)
    )
    return student != teacher


def _with_own_transform(run: Run, distillation: Distillation, images: int, seconds: float) -> Problem:
    """Evaluate the teacher with its own transform: if that is better, the student's is at fault."""
    teacher = distillation.frozen_teacher
    results = _evaluate(run, teacher, transform_of(teacher.detector), images, seconds)
    figures = _figures(results, run.module.classes)
    return Problem(
        f"resized and normalised as the teacher is configured, it reaches AP {figures.ap:.3f}, AP50 "
        f"{figures.ap50:.3f}",
        "if that is better, give the student the teacher's min_size, max_size and normalisation",
        severe=False,
    )

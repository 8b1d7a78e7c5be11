"""The confusion matrix, beside a matcher of loops and COCO's own true positives."""

import numpy as np
import pytest

from defeat.evaluation.confusion import Confusion, confusion_matrix, confusions
from defeat.evaluation.image_result import ImageResult, to_image_result
from defeat.report.class_matches import match_classes
from tests.helpers.evaluation_cases import CLASSES, make_prediction, make_target, random_case
from tests.helpers.naive import iou as overlap

K = len(CLASSES)


def naive_matrix(images: list[ImageResult], score: float, iou: float) -> np.ndarray:
    """By loops: objects of the detection's class first, then what is left of the others."""
    matrix = np.zeros((K + 1, K + 1), dtype=int)
    for image in images:
        objects = [
            (box, label - 1)
            for box, label, ignore in zip(
                image.true_boxes.tolist(), image.true_labels.tolist(), image.ignore.tolist(), strict=True
            )
            if not ignore
        ]
        found = zip(image.scores.tolist(), image.boxes.tolist(), image.labels.tolist(), strict=True)
        waiting = [(box, label - 1) for s, box, label in sorted(found, key=lambda row: -row[0]) if s >= score]
        for same_class in (True, False):
            rest = []
            for box, label in waiting:
                near = [
                    (overlap(box, other), -i)
                    for i, (other, of) in enumerate(objects)
                    if (of == label or not same_class) and overlap(box, other) >= iou
                ]
                if near:
                    _, of = objects.pop(-max(near)[1])
                    matrix[of, label] += 1
                else:
                    rest.append((box, label))
            waiting = rest
        for _, label in waiting:
            matrix[K, label] += 1
        for _, label in objects:
            matrix[label, K] += 1
    return matrix


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_matrix_is_that_of_loops(seed: int) -> None:
    case = random_case(seed, whole_pixels=False)
    for target in case.targets:
        target["ignore"][:] = False
    for prediction in case.predictions:
        prediction["labels"][::3] = prediction["labels"][::3] % (K - 1) + 1
    images = [to_image_result(p, t) for p, t in zip(case.predictions, case.targets, strict=True)]
    matrix = confusion_matrix(images, K, score=0.3, iou=0.4)
    np.testing.assert_array_equal(matrix, naive_matrix(images, 0.3, 0.4))
    off = matrix[:K, :K].sum() - np.trace(matrix[:K, :K])
    assert off > 0
    assert [c.objects for c in confusions(matrix, CLASSES)] == sorted(
        (n for i, row in enumerate(matrix[:K, :K].tolist()) for j, n in enumerate(row) if n and i != j),
        reverse=True,
    )


def test_the_diagonal_has_cocos_true_positives_and_ignored_regions_count_neither_way() -> None:
    case = random_case(5)
    images = [to_image_result(p, t) for p, t in zip(case.predictions, case.targets, strict=True)]
    matrix = confusion_matrix(images, K, score=0.0, iou=0.5)
    hits = [int(matches.hit[:, 0, 0].sum()) for matches in match_classes(images, K, 10_000)]
    assert matrix.diagonal()[:K].tolist() == hits
    to_find = [sum(int((i.true_labels[~i.ignore] == k).sum()) for i in images) for k in range(1, K + 1)]
    assert matrix.sum(axis=1)[:K].tolist() == to_find


def test_a_cow_taken_for_a_dog_is_told_with_its_share() -> None:
    target = make_target([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], [3, 3, 4])
    prediction = make_prediction(
        [[0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 10]], [0.9, 0.8, 0.4], [3, 4, 3]
    )
    (only,) = confusions(confusion_matrix([to_image_result(prediction, target)], K), CLASSES)
    assert only == Confusion("cow", "dog", 1, 0.5)

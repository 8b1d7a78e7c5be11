"""Curves of precision over recall, beside pycocotools' arrays."""

import numpy as np
import pytest

from defeat.evaluation import DetectionMetrics
from defeat.evaluation.precision_recall import precision_recall
from tests.helpers.evaluation_cases import (
    CLASSES,
    Case,
    make_prediction,
    make_target,
    pycocotools_evaluation,
    random_case,
)


def computed(case: Case, classes: tuple[str, ...]) -> DetectionMetrics:
    metrics = DetectionMetrics(classes)
    metrics.update(case.predictions, case.targets)
    metrics.compute()
    return metrics


def test_curves_are_pycocotools_and_average_to_its_ap() -> None:
    case = random_case(3)
    metrics, judge = computed(case, CLASSES), pycocotools_evaluation(case)
    assert metrics.curves is not None
    for iou, at, stat in ((0.5, 0, 1), (0.75, 5, 2)):
        for label in range(1, len(CLASSES)):
            curve = precision_recall(metrics.curves, iou, label)
            assert curve is not None
            for name in ("precision", "scores"):
                expected = judge.eval[name][at, :, label - 1, 0, 2]
                np.testing.assert_allclose(getattr(curve, name), expected, atol=1e-12)
        mean = precision_recall(metrics.curves, iou)
        assert mean is not None
        assert mean.precision.mean() == pytest.approx(judge.stats[stat])
    assert precision_recall(metrics.curves, 0.5, len(CLASSES)) is None  # a class that never occurs


def test_a_curve_by_score_has_the_hits_and_the_false_detections_counted_by_hand() -> None:
    boxes = [[10 * i, 0, 10 * i + 8, 8] for i in range(6)]
    # five objects; by falling score: hit, hit, false, hit, false
    found = [boxes[0], boxes[1], [200, 200, 208, 208], boxes[2], [300, 300, 308, 308]]
    case = Case(
        [make_prediction(found, [0.9, 0.8, 0.7, 0.5, 0.25], [1] * 5)], [make_target(boxes[:5], [1] * 5)]
    )
    metrics = computed(case, ("ant",))
    assert metrics.curves is not None
    curve = precision_recall(metrics.curves, 0.5, 1)
    assert curve is not None
    assert curve.positives == 5
    precision, recall = curve.at_thresholds(np.array([0.0, 0.3, 0.5, 0.6, 0.8, 0.85, 0.95]))
    np.testing.assert_allclose(recall, [0.6, 0.6, 0.6, 0.4, 0.4, 0.2, 0.0])
    np.testing.assert_allclose(precision, [0.75, 0.75, 0.75, 1.0, 1.0, 1.0, 0.0])

import math

import numpy as np
import pytest

from defeat.evaluation.average_precision import VOC_RECALLS, average_precision_of_hits
from tests.helpers.evaluation_cases import CLASSES, Case, evaluate, make_prediction, make_target, random_case


def naive_voc(case: Case, label: int, eleven: bool) -> float:
    """``VOCevaldet.m`` line by line: 1-based boxes with an inclusive far corner, ``+ 1`` in every width."""
    positives, detections, taken = 0, [], set()
    for image, (prediction, target) in enumerate(zip(case.predictions, case.targets, strict=True)):
        for true_label, difficult in zip(target["labels"].tolist(), target["ignore"].tolist(), strict=True):
            positives += true_label == label and not difficult
        for n, score in enumerate(prediction["scores"].tolist()):
            if prediction["labels"][n] == label:
                detections.append((score, image, _one_based(prediction["boxes"][n].tolist())))
    if positives == 0:
        return math.nan

    tp, fp = [], []
    for _, image, box in sorted(detections, key=lambda detection: -detection[0]):
        target, most, best = case.targets[image], -math.inf, None
        for n in range(len(target["boxes"])):
            if target["labels"][n] == label:
                overlap = _overlap(box, _one_based(target["boxes"][n].tolist()))
                if overlap > most:
                    most, best = overlap, n
        hit = miss = 0
        if most >= 0.5:
            if not target["ignore"][best]:
                hit, miss = (0, 1) if (image, best) in taken else (1, 0)
                taken.add((image, best))
        else:
            miss = 1
        tp.append(hit)
        fp.append(miss)

    recalls, precisions, hits, misses = [], [], 0, 0
    for n in range(len(tp)):
        hits, misses = hits + tp[n], misses + fp[n]
        recalls.append(hits / positives)
        precisions.append(hits / (hits + misses) if hits + misses else 0.0)
    if eleven:
        levels = [n / 10 for n in range(11)]
        return (
            sum(
                max((p for r, p in zip(recalls, precisions, strict=True) if r >= t), default=0.0)
                for t in levels
            )
            / 11
        )
    mrec, mpre = [0.0, *recalls, 1.0], [0.0, *precisions, 0.0]
    for n in range(len(mpre) - 2, -1, -1):
        mpre[n] = max(mpre[n], mpre[n + 1])
    return sum((mrec[n] - mrec[n - 1]) * mpre[n] for n in range(1, len(mrec)) if mrec[n] != mrec[n - 1])


def _one_based(box):
    x1, y1, x2, y2 = box
    return x1 + 1, y1 + 1, x2, y2


def _overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return -math.inf
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(area) - width * height)


@pytest.mark.parametrize("seed", range(12))
def test_mean_ap_equals_a_transcription_of_the_development_kit(seed):
    case = random_case(seed)
    found = evaluate(case).voc
    for key, eleven in (("AP50_11point", True), ("AP50_allpoint", False)):
        per_class = [naive_voc(case, label, eleven) for label in range(1, len(CLASSES) + 1)]
        measured = [value for value in per_class if not math.isnan(value)]
        assert len(measured) < len(CLASSES)
        assert found[key] == pytest.approx(sum(measured) / len(measured), abs=1e-12)


@pytest.mark.parametrize(
    ("hit", "positives", "eleven", "every"),
    [
        ([], 1, 0.0, 0.0),
        ([1], 1, 1.0, 1.0),
        ([1], 2, 6 / 11, 0.5),  # recalls 0, 0.1, ..., 0.5
        ([0, 1, 1], 2, 2 / 3, 2 / 3),  # precision is made to fall
        ([1, 0, 1], 2, (6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3),
        ([1, 1, 1], 10, 4 / 11, 0.3),  # 3 / 10 reaches the level 0.3
    ],
)
def test_ap_of_curves_computed_by_hand(hit, positives, eleven, every):
    hit = np.array(hit, dtype=bool)
    assert average_precision_of_hits(hit, positives, VOC_RECALLS) == pytest.approx(eleven, abs=1e-12)
    assert average_precision_of_hits(hit, positives, None) == pytest.approx(every, abs=1e-12)


A, B = [0, 0, 10, 10], [100, 0, 110, 10]


@pytest.mark.parametrize(
    ("found", "scores", "true", "ignore", "expected"),
    [
        pytest.param([A, A], [0.9, 0.8], [A, B], None, 0.5, id="a duplicate is a false positive"),
        pytest.param([A, A, B], [0.9, 0.8, 0.7], [A, B], None, 0.5 + 0.5 * 2 / 3, id="and costs precision"),
        pytest.param([B, A], [0.9, 0.8], [A, B], [False, True], 1.0, id="a hit on difficult does not count"),
        pytest.param([B, B, A], [0.9, 0.8, 0.7], [A, B], [False, True], 1.0, id="nor do two"),
        pytest.param([B], [0.9], [A, B], [False, True], 0.0, id="difficult is no positive"),
        pytest.param([[0, 0, 10, 5]], [0.9], [A], None, 1.0, id="half is enough"),
        pytest.param([[0, 0, 10, 4]], [0.9], [A], None, 0.0, id="less is not"),
        pytest.param([A, [1, 0, 11, 10]], [0.9, 0.8], [A, [3, 0, 13, 10]], None, 0.5, id="no second choice"),
        pytest.param([B, A], [0.5, 0.5], [A], None, 0.5, id="ties keep their order"),
        pytest.param([A, B], [0.5, 0.5], [A], None, 1.0, id="and the other order"),
    ],
)
def test_matching_rules_by_hand(found, scores, true, ignore, expected):
    labels = [1] * len(found), [1] * len(true)
    case = Case([make_prediction(found, scores, labels[0])], [make_target(true, labels[1], ignore)])
    assert evaluate(case, ("ant",)).voc["AP50_allpoint"] == pytest.approx(expected)


def test_a_detection_hits_neither_another_class_nor_another_image():
    other_class = Case([make_prediction([A], [0.9], [2])], [make_target([A], [1])])
    assert evaluate(other_class).voc["AP50_allpoint"] == 0
    targets = [make_target([A], [1], index=0), make_target([], [], index=1)]
    other_image = Case([make_prediction([], [], []), make_prediction([A], [0.9], [1])], targets)
    assert evaluate(other_image).voc["AP50_allpoint"] == 0

import math

import numpy as np
import pytest
import torch

import defeat.evaluation.coco_metrics as coco_module
from defeat.config import compose_config
from defeat.detectors import faster_rcnn, fcos, retinanet
from defeat.errors import ConfigError
from defeat.evaluation import COCO_KEYS, DetectionMetrics
from defeat.evaluation.matching import xywh
from defeat.report.bootstrap import FIGURES, resampled_figures
from defeat.report.class_matches import match_classes
from defeat.run.evaluate import evaluate as evaluate_as_configured
from defeat.run.train import train
from defeat.training.module import DetectionModule
from tests.helpers.evaluation_cases import (
    CLASSES,
    Case,
    evaluate,
    judge,
    make_prediction,
    make_target,
    random_case,
)
from tests.helpers.narrow import NARROW


@pytest.mark.parametrize("backend", ["faster_coco_eval", "pycocotools"])
@pytest.mark.parametrize("whole_pixels", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_all_figures_equal_those_of_pycocotools_by_either_engine(seed, whole_pixels, backend, capfd):
    case = random_case(seed, whole_pixels=whole_pixels)
    coco, per_class = judge(case)
    metrics = DetectionMetrics(CLASSES, backend)
    metrics.update(case.predictions, case.targets)
    evaluation = metrics.compute()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert evaluation.coco == pytest.approx(coco, abs=1e-12, nan_ok=True)
    assert evaluation.per_class == pytest.approx(per_class, abs=1e-12, nan_ok=True)
    assert 0.05 < evaluation.coco["AP"] < 0.95, "a case where everything or nothing is found proves little"
    assert math.isnan(evaluation.per_class["elk"])
    assert (tuple(evaluation.coco), tuple(evaluation.per_class)) == (COCO_KEYS, CLASSES)


def test_an_overlap_equal_to_a_threshold_is_a_hit():
    # 3 of 5 pixels: IoU 0.6, which is less than the float32 0.6 that torchmetrics compares with by default.
    case = Case([make_prediction([[0, 0, 10, 30]], [0.9], [1])], [make_target([[0, 0, 10, 50]], [1])])
    assert evaluate(case, ("ant",)).coco["AP"] == pytest.approx(0.3)
    assert judge(case, ("ant",))[0]["AP"] == pytest.approx(0.3)


def test_the_area_of_the_target_decides_the_size_not_the_box():
    box = [[0, 0, 200, 200]]
    case = Case([make_prediction(box, [0.9], [1])], [make_target(box, [1], area=[2000.0])])
    evaluation = evaluate(case, ("ant",))
    assert evaluation.coco["APm"] == pytest.approx(1.0)
    assert math.isnan(evaluation.coco["APl"])


def test_no_more_than_a_hundred_detections_of_a_class_count():
    far, box = [[500, 500, 510, 510]] * 100, [[0, 0, 50, 50]]
    scores = [0.9] * 100 + [0.1]
    hidden = Case([make_prediction(far + box, scores, [1] * 101)], [make_target(box, [1])])
    other_class = Case([make_prediction(far + box, scores, [2] * 100 + [1])], [make_target(box, [1])])
    assert evaluate(hidden).coco["AP"] == 0
    assert evaluate(other_class).coco["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("backend", ["faster_coco_eval", "pycocotools"])
def test_more_than_a_hundred_objects_need_max_dets(backend):
    boxes = torch.tensor(
        [[20.0 * i, 20.0 * j, 20.0 * i + 9, 20.0 * j + 9] for i in range(20) for j in range(10)]
    )
    case = Case(
        [make_prediction(boxes, torch.linspace(0.9, 0.1, 200), [1] * 200)], [make_target(boxes, [1] * 200)]
    )
    for max_dets, recall in ((100, 0.5), (150, 0.75), (1000, 1.0)):
        metrics = DetectionMetrics(CLASSES, backend, max_dets)
        metrics.update(case.predictions, case.targets)
        figures = metrics.compute().coco
        # precision is 1 up to the recall that is reached, of 101 points
        assert figures["AP"] == pytest.approx((math.floor(recall * 100) + 1) / 101)
        assert figures["AR100"] == pytest.approx(recall)
        assert (figures["AR1"], figures["AR10"]) == pytest.approx((1 / 200, 10 / 200))
        resampled = resampled_figures(
            match_classes(list(metrics.computed.values()), len(CLASSES), max_dets), np.ones((1, 1))
        )
        assert resampled[0][FIGURES.index("AP")] == pytest.approx(figures["AP"])  # as a report computes it


@pytest.mark.parametrize("number", [1_000_001, 9, 0, -1, 100.0, True, "many", None])
def test_max_dets_must_make_sense(number):
    with pytest.raises(ConfigError, match=r"evaluation\.max_dets=.* at least 10"):
        DetectionMetrics(CLASSES, max_dets=number)


@pytest.mark.parametrize("build", [faster_rcnn, retinanet, fcos])
def test_max_dets_reaches_the_detector(build):
    student = build(3, backbone=NARROW, min_size=64, max_size=64)
    DetectionModule(student, CLASSES[:2])
    limits = student.roi_heads if build is faster_rcnn else student
    assert limits.detections_per_img == 100
    DetectionModule(student, CLASSES[:2], max_dets=250)
    assert limits.detections_per_img == 250


def test_perfect_predictions_give_one():
    targets = random_case(3).targets
    predictions = [make_prediction(t["boxes"], torch.ones(len(t["boxes"])), t["labels"]) for t in targets]
    evaluation = evaluate(Case(predictions, targets))
    for key, value in evaluation.coco.items():
        if key not in ("AR1", "AR10"):
            assert value == pytest.approx(1.0), key
    assert evaluation.voc == pytest.approx({"AP50_11point": 1.0, "AP50_allpoint": 1.0})


def test_no_predictions_give_zero():
    targets = random_case(0).targets
    evaluation = evaluate(Case([make_prediction([], [], []) for _ in targets], targets))
    assert set(evaluation.coco.values()) == {0.0}
    assert set(evaluation.voc.values()) == {0.0}


@pytest.mark.parametrize("ignored", [0, 2])
def test_nothing_to_find_is_nan_and_not_minus_one(ignored):
    boxes = [[0, 0, 20, 20], [30, 30, 60, 60]][:ignored]
    target = make_target(boxes, [1, 2][:ignored], ignore=[True, True][:ignored])
    evaluation = evaluate(Case([make_prediction([[0, 0, 20, 20]], [0.5], [1])], [target]))
    assert all(math.isnan(value) for value in evaluation.coco.values())
    assert all(math.isnan(value) for value in evaluation.per_class.values())
    assert all(math.isnan(value) for value in evaluation.voc.values())
    assert list(evaluation.per_class) == list(CLASSES)
    assert evaluation.images == 1


def test_images_without_boxes_and_detections_are_nan():
    evaluation = evaluate(
        Case([make_prediction([], [], [])] * 2, [make_target([], [], index=i) for i in (0, 1)])
    )
    assert all(math.isnan(value) for value in [*evaluation.coco.values(), *evaluation.voc.values()])
    assert evaluation.images == 2


def test_an_unknown_engine_is_refused_in_one_line_before_anything_is_read():
    config = compose_config(
        "eval", ["results=none.json", "data=coco", "evaluation.backend=coco", "run_dir=."]
    )
    with pytest.raises(ConfigError, match=r"^evaluation\.backend=coco is none of .*pycocotools$"):
        evaluate_as_configured(config)
    config = compose_config("train", ["+experiment=scenes_plain", "evaluation.backend=coco", "run_dir=none"])
    with pytest.raises(ConfigError, match=r"^evaluation\.backend=coco is none of .*pycocotools$"):
        train(config)


def test_only_the_boxes_of_one_class_are_objects_at_a_time(monkeypatch):
    given, data_set = [], coco_module._data_set
    monkeypatch.setattr(
        coco_module,
        "_data_set",
        lambda data, images, boxes: given.append(len(boxes)) or data_set(data, images, boxes),
    )
    case = random_case(2)
    evaluate(case)
    expected = []
    for label in range(1, len(CLASSES)):
        for items in (case.targets, case.predictions):
            expected.append(sum(int((item["labels"] == label).sum()) for item in items))
    assert sorted(given) == sorted(expected)


def test_sides_are_those_that_the_file_gave():
    given = torch.tensor([[0.1, 0.2, 0.7, 0.3], [12.34, 56.78, 9.1, 640.07]], dtype=torch.float64)
    corners = torch.cat([given[:, :2], given[:, :2] + given[:, 2:]], dim=1)
    assert not torch.equal(corners[:, 2:] - corners[:, :2], given[:, 2:])
    assert torch.equal(xywh(corners), given)

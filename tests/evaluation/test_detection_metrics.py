import math

import pytest
import torch
from torch import nn

from defeat.evaluation import DetectionMetrics
from tests.helpers.evaluation_cases import CLASSES, Case, evaluate, make_prediction, make_target, random_case


@pytest.fixture(scope="module")
def case():
    return random_case(7)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_images_changes_nothing(case, seed):
    order = torch.randperm(len(case.targets), generator=torch.Generator().manual_seed(seed)).tolist()
    mixed = Case([case.predictions[i] for i in order], [case.targets[i] for i in order])
    assert evaluate(mixed).to_json() == evaluate(case).to_json()


def test_batches_change_nothing(case):
    metrics = DetectionMetrics(CLASSES)
    for start in range(0, len(case.targets), 5):
        metrics.update(case.predictions[start : start + 5], case.targets[start : start + 5])
    assert metrics.compute().to_json() == evaluate(case).to_json()


def test_an_image_that_comes_twice_counts_once(case):
    twice = Case(case.predictions + case.predictions[:3], case.targets + case.targets[:3])
    assert evaluate(twice).to_json() == evaluate(case).to_json()


def test_updates_after_compute_are_seen_and_a_reset_forgets_everything(case):
    metrics = DetectionMetrics(CLASSES)
    metrics.update(case.predictions[:4], case.targets[:4])
    first = metrics.compute()
    metrics.update([], [])
    metrics.update(case.predictions[4:], case.targets[4:])
    assert first.images == 4
    assert metrics.compute().to_json() == evaluate(case).to_json()
    metrics.reset()
    metrics.update(case.predictions, case.targets)
    assert metrics.compute().to_json() == evaluate(case).to_json()


def test_without_images_all_is_nan():
    metrics = DetectionMetrics(CLASSES)
    with pytest.warns(UserWarning, match="before the ``update``"):
        evaluation = metrics.compute()
    assert evaluation.images == 0
    assert all(math.isnan(value) for value in [*evaluation.coco.values(), *evaluation.per_class.values()])


def test_nothing_enters_the_state_dict_of_its_module(case):
    module = nn.Module()
    module.metrics = DetectionMetrics(CLASSES)
    module.metrics.update(case.predictions, case.targets)
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    module.load_state_dict({}, strict=True)


def test_conversions_of_the_module_leave_the_images_exact(case):
    module = nn.Module()
    module.metrics = DetectionMetrics(CLASSES)
    module.metrics.update(case.predictions, case.targets)
    module.half()
    module.to(torch.bfloat16)
    module.to("cpu")
    assert module.metrics.compute().to_json() == evaluate(case).to_json()


def test_predictions_with_a_gradient_keep_no_graph(case):
    metrics = DetectionMetrics(CLASSES)
    prediction = make_prediction([[0, 0, 9, 9]], [0.5], [1])
    prediction["scores"] = prediction["scores"].requires_grad_() * 1.0
    metrics.update([prediction], [make_target([[0, 0, 9, 9]], [1])])
    assert not any(rows.requires_grad for rows in metrics.detections)


@pytest.mark.gpu
def test_what_is_kept_leaves_the_gpu(case):
    metrics = DetectionMetrics(CLASSES).to("cuda")
    for prediction, target in zip(case.predictions, case.targets, strict=True):
        moved = [{name: value.cuda() for name, value in item.items()} for item in (prediction, target)]
        metrics.update([moved[0]], [moved[1]])
    assert {rows.device.type for rows in metrics.detections + metrics.truths + metrics.images} == {"cpu"}
    assert metrics.compute().to_json() == evaluate(case).to_json()


def test_lists_of_different_length_are_refused(case):
    with pytest.raises(ValueError, match="got 1 for 2"):
        DetectionMetrics(CLASSES).update(case.predictions[:1], case.targets[:2])


@pytest.mark.parametrize("label", [0, 6])
def test_labels_outside_the_classes_are_refused(label):
    metrics = DetectionMetrics(CLASSES)
    box = [[0, 0, 9, 9]]
    with pytest.raises(ValueError, match=r"predicted labels must be in 1\.\.5"):
        metrics.update([make_prediction(box, [0.5], [label])], [make_target(box, [1])])
    with pytest.raises(ValueError, match=r"target labels must be in 1\.\.5"):
        metrics.update([make_prediction(box, [0.5], [1])], [make_target(box, [label])])


def test_nothing_is_kept_of_a_batch_with_a_wrong_label():
    metrics = DetectionMetrics(CLASSES)
    prediction, target = make_prediction([[0, 0, 9, 9]], [0.5], [1]), make_target([[0, 0, 9, 9]], [9])
    with pytest.raises(ValueError, match=r"target labels must be in 1\.\.5, got \[9\]"):
        metrics.update([prediction], [target])
    assert [metrics.images, metrics.detections, metrics.truths] == [[], [], []]


def test_a_batch_is_fetched_from_the_device_twice(case, monkeypatch):
    fetched, fetch = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda rows: fetched.append(rows) or fetch(rows))
    metrics = DetectionMetrics(CLASSES)
    metrics.update(case.predictions, case.targets)
    monkeypatch.undo()
    assert len(fetched) == 2
    assert metrics.compute().to_json() == evaluate(case).to_json()


def test_labels_are_exact_where_boxes_are_of_half_precision():
    classes = [str(i) for i in range(1, 3001)]
    prediction, target = make_prediction([[0, 0, 8, 8]], [0.5], [2049]), make_target([[0, 0, 8, 8]], [2049])
    prediction["boxes"] = prediction["boxes"].half()
    metrics = DetectionMetrics(classes)
    metrics.update([prediction], [target])
    assert metrics.compute().per_class["2049"] == pytest.approx(1.0)

"""Figures of resamples against pycocotools, and against the training's figures of really repeated images."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defeat.evaluation.coco_metrics import coco_metrics
from defeat.report import bootstrap
from defeat.report.bootstrap import FIGURES, draw_weights, resampled_figures
from defeat.report.class_matches import match_classes
from tests.helpers.report_cases import detect, image_result, random_truth

NAMES = ("ant", "bee", "cow", "dog")  # the last never occurs


def pycocotools(images) -> list[float]:
    """AP, AP50, AP75, APs, APm, APl by the reference implementation."""
    metrics, _ = coco_metrics(images, NAMES, "pycocotools")
    return [metrics[name] for name in FIGURES]


def resampled(images, weights=None):
    weights = np.ones((len(images), 1), np.int32) if weights is None else weights
    return resampled_figures(match_classes(images, len(NAMES)), weights)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_weights_of_one_give_the_figures_of_pycocotools(seed, ties, whole):
    rng = np.random.default_rng([seed, ties, whole])
    truth = random_truth(rng, 14, whole=whole)
    images = detect(rng, truth, whole=whole, ties=ties, extra=150 if seed == 3 else 6)
    figures = resampled(images)[0]
    assert figures == pytest.approx(pycocotools(images), abs=1e-12, nan_ok=True)
    assert np.isfinite(figures).all()


def test_more_than_100_detections_of_an_image_and_class_do_not_count():
    rows = [(0, 0, 10, 10, 0.9 - n / 1000, 1) for n in range(100)]
    true = [(0, 0, 10, 10, 1), (100, 100, 110, 110, 1)]
    images = [image_result([*rows, (100, 100, 110, 110, 0.1, 1)], true)]
    assert resampled(images)[0, 0] == pytest.approx(51 / 101)
    assert resampled([image_result([*rows[1:], (100, 100, 110, 110, 0.1, 1)], true)])[0, 0] > 51 / 101


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    whole=st.booleans(),
    copies=st.lists(st.integers(0, 4), min_size=9, max_size=9),
)
def test_weights_give_the_figures_of_repeated_images(seed, whole, copies):
    rng = np.random.default_rng(seed)
    images = detect(rng, random_truth(rng, 9, whole=whole), whole=whole)
    if not any(copies):
        copies = [1] * 9
    repeated = [image for image, n in zip(images, copies, strict=True) for _ in range(n)]
    figures = resampled(images, np.array(copies, np.int32)[:, None])[0]
    assert figures == pytest.approx(pycocotools(repeated), abs=1e-9, nan_ok=True)


def test_resamples_give_the_trainings_figures_of_those_images(monkeypatch):
    monkeypatch.setattr(bootstrap, "_MAX_CELLS", 100)  # so small that they are computed in several slices
    rng = np.random.default_rng(3)
    images = detect(rng, random_truth(rng, 12))
    weights = draw_weights(12, 5, seed=1)
    figures = resampled(images, weights)
    for row, copies in zip(figures, weights.T, strict=True):
        repeated = [image for image, n in zip(images, copies, strict=True) for _ in range(n)]
        coco, _ = coco_metrics(repeated, NAMES)
        assert row == pytest.approx([coco[name] for name in FIGURES], abs=1e-7, nan_ok=True)


def test_equal_scores_in_different_images_count_in_the_order_of_the_images():
    hit, miss = (0, 0, 10, 10, 0.5, 1), (50, 50, 60, 60, 0.5, 1)
    good, bad = image_result([hit], [(0, 0, 10, 10, 1)]), image_result([miss], [(0, 0, 10, 10, 1)])
    for images in ([good, bad], [bad, good]):
        repeated = [image for image in images for _ in range(3)]
        figures = resampled(images, np.array([[3], [3]], np.int32))[0]
        assert figures == pytest.approx(pycocotools(repeated), abs=1e-12, nan_ok=True)
    assert resampled([good, bad])[0, 0] > resampled([bad, good])[0, 0]


def test_a_class_that_a_resample_lacks_is_left_out_there():
    ant = image_result([(0, 0, 10, 10, 0.9, 1)], [(0, 0, 10, 10, 1)])
    bee = image_result([], [(0, 0, 10, 10, 2)])
    figures = resampled([ant, bee], np.array([[1, 2, 0], [1, 0, 2]], np.int32))
    assert figures[:, 0].tolist() == [0.5, 1.0, 0.0]
    assert figures[:, 3].tolist() == [0.5, 1.0, 0.0]
    assert np.isnan(figures[:, 4:]).all()  # neither medium nor large


def test_weights_are_draws_with_replacement_by_the_seed():
    weights = draw_weights(50, 400, seed=7)
    assert weights.shape == (50, 400)
    assert (weights.sum(axis=0) == 50).all()
    assert (weights == draw_weights(50, 400, seed=7)).all()
    assert (weights != draw_weights(50, 400, seed=8)).any()
    assert abs(float((weights == 0).mean()) - (1 - 1 / 50) ** 50) < 0.01
    assert weights.mean(axis=1) == pytest.approx(np.ones(50), abs=0.25)


def test_no_detections_at_all():
    images = [image_result([], [(0, 0, 10, 10, 1)]), image_result()]
    assert resampled(images)[0] == pytest.approx([0, 0, 0, 0, np.nan, np.nan], nan_ok=True)
    assert torch.equal(images[1].boxes, torch.empty(0, 4, dtype=torch.float64))

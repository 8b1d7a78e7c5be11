"""Random detections with everything that is odd about real ones, and pycocotools as the judge."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from defeat.evaluation import COCO_KEYS, DetectionMetrics, Evaluation
from defeat.types import Prediction, Target

CLASSES = ("ant", "bee", "cow", "dog", "elk")


@dataclass
class Case:
    predictions: list[Prediction]
    targets: list[Target]


def make_prediction(boxes, scores, labels) -> Prediction:
    return Prediction(
        boxes=torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.as_tensor(scores, dtype=torch.float32),
        labels=torch.as_tensor(labels, dtype=torch.int64),
    )


def make_target(boxes, labels, ignore=None, area=None, index=0) -> Target:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Target(
        boxes=boxes,
        labels=torch.as_tensor(labels, dtype=torch.int64),
        ignore=torch.as_tensor([False] * len(boxes) if ignore is None else ignore, dtype=torch.bool),
        area=sides.prod(1) if area is None else torch.as_tensor(area, dtype=torch.float32),
        index=torch.tensor(index),
    )


def random_case(seed: int, images: int = 12, whole_pixels: bool = True, detections: int = 25) -> Case:
    """Some images empty, some without detections, one all ignored, one crowded; the last class never occurs.

    Boxes on whole pixels give overlaps of exactly 0.5, 0.6, ..., and few different scores give ties.
    """
    rng = np.random.default_rng([seed, whole_pixels])
    case = Case([], [])
    for index in range(images):
        n = 0 if index % 5 == 3 else int(rng.integers(1, 9))
        boxes, labels = _boxes(rng, n, whole_pixels), rng.integers(1, len(CLASSES), n)
        ignore = np.ones(n, dtype=bool) if index == 1 else rng.random(n) < 0.2
        area = np.where(rng.random(n) < 0.1, 0.0, rng.choice([500.0, 1024.0, 5000.0, 9216.0, 60000.0], n))
        case.targets.append(make_target(boxes, labels, ignore, area, index))

        extra = 0 if index % 4 == 2 else 150 if index == 4 else int(rng.integers(0, detections))
        near = np.repeat(boxes, 2, axis=0) + _round(rng.uniform(-6, 6, (2 * n, 4)), whole_pixels)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found = np.concatenate([near, _boxes(rng, extra, whole_pixels)]) if extra else boxes[:0]
        of_class = np.concatenate([np.repeat(labels, 2), rng.integers(1, len(CLASSES), extra)])[: len(found)]
        scores = rng.integers(1, 25, len(found)) / 40 + np.where(np.arange(len(found)) < 2 * n, 0.3, 0.0)
        best_first = np.argsort(-scores)
        case.predictions.append(make_prediction(found[best_first], scores[best_first], of_class[best_first]))
    return case


def _boxes(rng: np.random.Generator, n: int, whole_pixels: bool) -> np.ndarray:
    corner, side = rng.uniform(0, 200, (n, 2)), rng.uniform(4, 120, (n, 2))
    return _round(np.concatenate([corner, corner + side], axis=1), whole_pixels)


def _round(values: np.ndarray, whole_pixels: bool) -> np.ndarray:
    return np.round(values) if whole_pixels else values


def evaluate(case: Case, classes=CLASSES) -> Evaluation:
    metrics = DetectionMetrics(classes)
    metrics.update(case.predictions, case.targets)
    return metrics.compute()


def judge(case: Case, classes=CLASSES) -> tuple[dict[str, float], dict[str, float]]:
    """The 12 figures and each class's AP by pycocotools, nan for its -1."""
    judge = pycocotools_evaluation(case, classes)
    coco = {key: _nan(value) for key, value in zip(COCO_KEYS, judge.stats, strict=True)}
    per_class = {}
    for position, name in enumerate(classes):
        precision = judge.eval["precision"][:, :, position, 0, 2]
        per_class[name] = _nan(precision[precision > -1].mean()) if (precision > -1).any() else np.nan
    return coco, per_class


def pycocotools_evaluation(case: Case, classes=CLASSES) -> COCOeval:
    """The reference's own arrays, under ``eval``."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        frame = {
            "images": [{"id": int(target["index"])} for target in case.targets],
            "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
            "info": {},
        }
        truth.dataset = {**frame, "annotations": _annotations(case.targets, case.targets)}
        found.dataset = {**frame, "annotations": _annotations(case.predictions, case.targets)}
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def _annotations(items, targets):
    annotations = []
    for item, target in zip(items, targets, strict=True):
        boxes = item["boxes"].double()
        sides = boxes[:, 2:] - boxes[:, :2]
        for n in range(len(boxes)):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": int(target["index"]),
                "category_id": int(item["labels"][n]),
                "bbox": [*boxes[n, :2].tolist(), *sides[n].tolist()],
                "area": float(item["area"][n] if "area" in item else sides[n].prod()),
                "iscrowd": int(item["ignore"][n]) if "ignore" in item else 0,
            }
            if "scores" in item:
                annotation["score"] = float(item["scores"][n])
            annotations.append(annotation)
    return annotations


def _nan(value: float) -> float:
    return float("nan") if value < 0 else float(value)

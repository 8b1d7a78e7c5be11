"""Run folders with invented detections, odd ones too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf

from defeat.config import compose_config, to_plain
from defeat.evaluation.detections import DETECTIONS_FILE, Detections, write_detections
from defeat.evaluation.image_result import ImageResult

CLASSES = ("ant", "bee", "cow", "dog")


def image_result(found=(), true=(), crowd=(), area=None) -> ImageResult:
    """From rows (x1, y1, x2, y2, score, label) and (x1, y1, x2, y2, label); ``crowd`` holds places."""
    found = torch.tensor(found, dtype=torch.float64).reshape(-1, 6)
    true = torch.tensor(true, dtype=torch.float64).reshape(-1, 5)
    ignore = torch.zeros(len(true), dtype=torch.bool)
    ignore[list(crowd)] = True
    sides = true[:, 2:4] - true[:, :2]
    return ImageResult(
        boxes=found[:, :4],
        scores=found[:, 4],
        labels=found[:, 5].long(),
        true_boxes=true[:, :4],
        true_labels=true[:, 4].long(),
        ignore=ignore,
        area=sides.prod(1) if area is None else torch.tensor(area, dtype=torch.float64),
    )


def random_truth(
    rng: np.random.Generator, images: int, classes: int = 3, whole: bool = True
) -> list[ImageResult]:
    """Ground truth of ``classes`` classes; some images are empty, some boxes are crowds, areas vary."""
    truth = []
    for index in range(images):
        n = 0 if index % 6 == 5 else int(rng.integers(1, 8))
        corner, side = rng.uniform(0, 150, (n, 2)), rng.uniform(6, 130, (n, 2))
        boxes = np.concatenate([corner, corner + side], axis=1)
        rows = np.column_stack([boxes.round() if whole else boxes, rng.integers(1, classes + 1, n)])
        crowd = np.flatnonzero(rng.random(n) < 0.15)
        area = rng.choice([300.0, 1024.0, 4000.0, 9216.0, 30000.0], n)
        truth.append(image_result((), rows.tolist(), crowd.tolist(), area.tolist()))
    return truth


def detect(
    rng: np.random.Generator,
    truth: Sequence[ImageResult],
    *,
    classes: int = 3,
    jitter: float = 6.0,
    extra: int = 6,
    whole: bool = True,
    ties: bool = False,
) -> list[ImageResult]:
    """Detections near the truth, often two of a box, some of the wrong class, and some on nothing.

    Scores are float32 numbers, no two alike unless ``ties``.
    """
    results = []
    for image in truth:
        near = np.repeat(image.true_boxes.numpy(), 2, axis=0)
        near = near + rng.normal(0, jitter, near.shape)
        labels = np.repeat(image.true_labels.numpy(), 2)
        n = int(rng.integers(0, extra + 1))
        corner, side = rng.uniform(0, 180, (n, 2)), rng.uniform(5, 100, (n, 2))
        boxes = np.concatenate([near, np.concatenate([corner, corner + side], axis=1)])
        labels = np.concatenate([labels, rng.integers(1, classes + 1, n)])
        labels = np.where(rng.random(len(labels)) < 0.2, rng.integers(1, classes + 1, len(labels)), labels)
        boxes = boxes.round() if whole else boxes
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = rng.random(len(boxes)) * np.where(np.arange(len(boxes)) < len(near), 1.0, 0.6)
        scores = scores.round(1) if ties else scores
        results.append(
            image._replace(
                boxes=torch.from_numpy(boxes).float().double(),
                scores=torch.from_numpy(scores).float().double(),
                labels=torch.from_numpy(labels).long(),
            )
        )
    return results


@cache
def _composed(experiment: str) -> str:
    """The file config.yaml of a run in the folder RUN."""
    more = ["teacher.weights=teacher.ckpt"] if experiment == "scenes" else []
    config = compose_config("train", [f"+experiment={experiment}", "run_dir=RUN", "data.root=x", *more])
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def write_run(
    folder: Path,
    images: Sequence[ImageResult],
    *,
    experiment: str = "scenes_plain",
    classes: Sequence[str] = CLASSES,
    step: int = 400,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write what a run leaves behind, as far as a report reads it; no detections if there are no images."""
    config = yaml.load(_composed(experiment).replace("RUN", str(folder)), yaml.CSafeLoader)
    for key, value in {"seed": seed, "data.seed": seed, **(changes or {})}.items():
        *groups, name = key.split(".")
        reduce(lambda node, group: node[group], groups, config)[name] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))
    (folder / "data.json").write_text(json.dumps({"splits": {"train": {"sha256": "0"}}}))
    if images:
        write_detections(folder / DETECTIONS_FILE, Detections(dict(enumerate(images)), tuple(classes), step))
    return folder


def counted_out_case() -> list[ImageResult]:
    """Images whose numbers come from a formula and not from a library's random numbers, which may change.

    Two kinds of detections: near ground truth, shifted by up to a quarter of its side, and anywhere.
    29 images, 3 classes, some crowds. Scores are all different.
    """
    state = 12345

    def number(below: int) -> int:
        nonlocal state
        state = (1103515245 * state + 12345) % 2**31
        return state // 65536 % below

    def box(size: int) -> list[int]:
        x, y, width, height = number(150), number(150), 20 + number(size), 20 + number(size)
        return [x, y, x + width, y + height]

    images = []
    for index in range(29):
        true = [[*box(60), 1 + number(3)] for _ in range(number(6) if index != 4 else 0)]
        crowd = [i for i in range(len(true)) if number(7) == 0]
        found = []
        for x1, y1, x2, y2, label in true:
            for _ in range(number(4)):
                dx, dy = (
                    number((x2 - x1) // 2 + 1) - (x2 - x1) // 4,
                    number((y2 - y1) // 2 + 1) - (y2 - y1) // 4,
                )
                label = 1 + number(3) if number(4) == 0 else label
                found.append([x1 + dx, y1 + dy, x2 + dx, y2 + dy, 0.0, label])
        found += [[*box(60), 0.0, 1 + number(3)] for _ in range(number(4))]
        for n, row in enumerate(found):
            row[4] = (1 + number(9000) + index / 100 + n / 10000) / 10000
        images.append(image_result(found, true, crowd))
    return images

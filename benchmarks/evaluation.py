"""What the figures of a validation cost: seconds beside pycocotools, and memory, at COCO's size.

5,000 images with 100 detections and about 7 boxes of 80 classes each are generated. Both sides begin with the
same tensors and end with the 12 COCO figures, which must be the same. Memory is measured in a process of its
own for each size.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from measure import Timed, alternate, heading, ratio, table, verdict

from defeat.evaluation import COCO_KEYS, DetectionMetrics
from defeat.evaluation.coco_metrics import coco_metrics
from defeat.evaluation.voc_metrics import voc_metrics
from defeat.types import Prediction, Target

CLASSES = [f"class {i}" for i in range(1, 81)]
BATCH = 4
SHARES = (1 / 4, 1 / 2, 1)
SECONDS, DIFFERENCE = 10.0, 1e-6
MIB = 2**20

Batches = list[tuple[list[Prediction], list[Target]]]


def main() -> None:
    args = arguments()
    if args.measure:
        print(json.dumps(measure(args.images, args.detections)))
        return
    heading("Evaluation", packages=["torchmetrics", "faster-coco-eval", "pycocotools"])
    speed(args)
    growth(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="of the largest case")
    parser.add_argument("--detections", type=int, default=100, help="in each image")
    parser.add_argument("--rounds", type=int, default=5, help="of ours and pycocotools in turn")
    parser.add_argument(
        "--measure", action="store_true", help="measure memory and print JSON (for the others)"
    )
    return parser.parse_args()


# The data


def generate(images: int, detections: int) -> Iterator[tuple[list[Prediction], list[Target]]]:
    """Batches as a validation step sees them.

    Of the detections of an image two fifths lie near its boxes, two fifths have one of its classes but lie
    elsewhere, and the others are of any class; one box in fifty is a crowd.
    """
    rng = np.random.default_rng(0)
    for start in range(0, images, BATCH):
        pairs = [image(rng, index, detections) for index in range(start, min(start + BATCH, images))]
        yield [prediction for prediction, _ in pairs], [target for _, target in pairs]


def image(rng: np.random.Generator, index: int, detections: int) -> tuple[Prediction, Target]:
    n = int(rng.poisson(7.2))
    true, labels = boxes(rng, n), rng.integers(1, len(CLASSES) + 1, n)
    target = Target(
        boxes=torch.tensor(true, dtype=torch.float32),
        labels=torch.tensor(labels),
        ignore=torch.tensor(rng.random(n) < 0.02),
        area=torch.tensor((true[:, 2:] - true[:, :2]).prod(1) * 0.6, dtype=torch.float32),
        index=torch.tensor(index),
    )
    found, of_class = boxes(rng, detections), rng.integers(1, len(CLASSES) + 1, detections)
    scores = rng.uniform(0.05, 0.7, detections)
    if n:
        owner = rng.integers(0, n, detections)
        near, known = np.arange(detections) < 0.4 * detections, np.arange(detections) < 0.8 * detections
        of_class[known] = labels[owner][known]
        sides = np.tile(true[:, 2:] - true[:, :2], 2)[owner]
        found[near] = (true[owner] + sides * rng.normal(0, 0.12, (detections, 4)))[near]
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores[near] += 0.3 * rng.random(int(near.sum()))
    best_first = np.argsort(-scores)
    prediction = Prediction(
        boxes=torch.tensor(found[best_first], dtype=torch.float32),
        scores=torch.tensor(scores[best_first], dtype=torch.float32),
        labels=torch.tensor(of_class[best_first]),
    )
    return prediction, target


def boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    side = np.exp(rng.uniform(math.log(8), math.log(300), (n, 2)))
    corner = rng.uniform(0, 1, (n, 2)) * (640, 480)
    return np.concatenate([corner, corner + side], axis=1)


# Seconds


def speed(args: argparse.Namespace) -> None:
    batches = list(generate(args.images, args.detections))
    metrics = DetectionMetrics(CLASSES)
    figures: dict[str, dict[str, float]] = {}

    def update() -> None:
        metrics.reset()
        for predictions, targets in batches:
            metrics.update(predictions, targets)

    def compute() -> None:
        metrics._computed = None  # torchmetrics keeps what it returned
        figures["ours"] = metrics.compute().coco

    def judge() -> None:
        figures["pycocotools"] = pycocotools(batches)

    def images() -> list:
        return list(metrics.computed.values())

    variants = {
        "update": update,
        "compute": compute,
        "of it the COCO figures": lambda: coco_metrics(images(), CLASSES),
        "of it the VOC figures": lambda: voc_metrics(images(), CLASSES),
        "pycocotools": judge,
    }
    timed = alternate(variants, args.rounds)
    ours = Timed([sum(both) for both in zip(timed["update"].seconds, timed["compute"].seconds, strict=True)])
    rows = [[name, f"{one.median:.2f}", f"{one.spread:.0%}"] for name, one in {"ours": ours, **timed}.items()]
    print(table([f"{args.images:,} images x {args.detections} detections", "seconds", "spread"], rows))
    faster, spread = ratio([timed["pycocotools"]], [timed["update"], timed["compute"]])
    print(f"\npycocotools takes {faster:.1f} times as long (spread {spread:.0%})")
    if args.images == 5000:
        print(f"Metric time: {ours.median:.1f} s ({verdict(ours.median, SECONDS)})")
    worst = max(abs(figures["ours"][key] - figures["pycocotools"][key]) for key in COCO_KEYS)
    print(f"Largest difference of the 12 figures: {worst:.1e} ({verdict(worst, DIFFERENCE)})")
    print("Figures: " + ", ".join(f"{key} {figures['ours'][key]:.4f}" for key in COCO_KEYS))


def pycocotools(batches: Batches) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    pairs = [pair for batch in batches for pair in zip(*batch, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        frame = {
            "images": [{"id": int(target["index"])} for _, target in pairs],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        }
        truth.dataset = {**frame, "annotations": list(annotations(pairs, truth=True))}
        found.dataset = {**frame, "annotations": list(annotations(pairs, truth=False))}
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(COCO_KEYS, judge.stats.tolist(), strict=True))


def annotations(pairs: Sequence[tuple[Prediction, Target]], *, truth: bool) -> Iterator[dict]:
    number = 0
    for prediction, target in pairs:
        corners = (target if truth else prediction)["boxes"].double()
        xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        if truth:
            columns = (target["labels"].tolist(), target["area"].tolist(), target["ignore"].int().tolist())
        else:
            areas = [width * height for *_, width, height in xywh]
            columns = (prediction["labels"].tolist(), areas, prediction["scores"].tolist())
        last = "iscrowd" if truth else "score"
        for box, label, area, value in zip(xywh, *columns, strict=True):
            number += 1
            yield {
                "id": number,
                "image_id": int(target["index"]),
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": 0,
                last: value,
            }


# Memory


def measure(images: int, detections: int) -> dict[str, float]:
    """Bytes by which the resident memory grew: what updates keep, and the most that compute takes besides."""
    metrics = DetectionMetrics(CLASSES)
    for predictions, targets in generate(8 * BATCH, detections):  # what is made once
        metrics.update(predictions, targets)
    metrics.compute()
    metrics.reset()
    ctypes.CDLL(None).malloc_trim(0)  # else what is kept goes where memory was free already, and is not seen
    before = memory("VmRSS")
    for predictions, targets in generate(images, detections):
        metrics.update(predictions, targets)
    ctypes.CDLL(None).malloc_trim(0)
    kept = memory("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    metrics.compute()
    peak = memory("VmHWM") - before
    metrics.reset()
    return {"kept": kept, "peak": peak, "afterwards": memory("VmRSS") - before}


def memory(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def growth(args: argparse.Namespace) -> None:
    rows, peaks = [], []
    for images in (round(args.images * share) for share in SHARES):
        command = [
            sys.executable,
            __file__,
            "--measure",
            f"--images={images}",
            f"--detections={args.detections}",
        ]
        found = json.loads(subprocess.check_output(command, text=True))
        per_detection = found["kept"] / (images * args.detections)
        parts = [f"{found[name] / MIB:.0f}" for name in ("kept", "peak", "afterwards")]
        rows.append([f"{images:,}", *parts, f"{per_detection:.0f}"])
        peaks.append(found["peak"])
    print("\nMiB of resident memory beyond that before the first update:\n")
    header = ["images", "kept by update", "peak of compute", "after reset", "bytes kept a detection"]
    print(table(header, rows))
    print(
        f"\nThe peak from half of the images to all: {peaks[-1] / peaks[-2]:.2f} times (2 is a straight line)"
    )


if __name__ == "__main__":
    main()

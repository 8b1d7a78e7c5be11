"""What a teacher costs and how exact it is, for every ``teacher.precision``.

    python benchmarks/teacher.py
    python benchmarks/teacher.py --size 64 96 --rounds 1

Faster R-CNN with the ResNet-50 of a trained classifier on real photos, and the ResNet-152 with random weights
of the other benchmarks on noise. Times are of backbone and pyramid, which are what a feature loss needs.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from case import CLASSES, Case
from measure import alternate, heading, ratio, table
from torch import Tensor, nn

from defeat.config import build, compose_config
from defeat.data import read_image
from defeat.detectors import FrozenTeacher
from defeat.detectors.inference import to_unit_range
from defeat.detectors.teacher_precision import PRECISIONS, Precision, PrecisionReport, optimize_for_inference
from defeat.run.hardware import keep_freed_memory
from defeat.warning_filters import filter_warnings

SHARED = Path(__file__).resolve().parents[2] / "shared"
WEIGHTS = SHARED / "weights" / "resnet50_imagenet_fp16.safetensors"
PHOTOS = SHARED / "data" / "coco_open_320" / "images"

TRIED = tuple(precision for precision in PRECISIONS if precision != "float16")
"""A CPU has no fast float16."""


def main(words: Sequence[str] | None = None) -> None:
    options = _options(words)
    filter_warnings()
    for needed in (options.weights, options.photos):
        if not needed.exists():
            sys.exit(f"error: {needed} is not there: say --weights and --photos")
    keep_freed_memory()
    heading("The cheaper teacher")
    made: dict[str, Callable[[argparse.Namespace], tuple[nn.Module, Tensor]]] = {
        "ResNet-50 of a trained classifier": _trained,
        "ResNet-152 with random weights": _random,
    }
    for name, make in made.items():
        detector, images = make(options)
        height, width = images.shape[-2:]
        print(f"{name}, {len(images)} images of {height}x{width} pixels:\n", flush=True)
        print(_compare(detector, images, options.rounds), "\n", flush=True)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of a ResNet-50 classifier")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of JPEG files")
    parser.add_argument("--size", nargs=2, type=int, default=[400, 600], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    return parser.parse_args(words)


def _trained(options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    height, width = options.size
    words = [
        "+experiment=frcnn_r50",
        f"student.backbone_weights={options.weights}",
        f"student.model.min_size={height}",
        f"student.model.max_size={width}",
    ]
    node = compose_config("train", words).student
    torch.manual_seed(0)  # of the pyramid and the heads, which no classifier has
    detector: nn.Module = build(node, classes=list(CLASSES)).model.eval().requires_grad_(False)
    paths = sorted(options.photos.glob("*.jpg"))[: options.images]
    with torch.no_grad():
        images = cast(Any, detector).transform(to_unit_range([read_image(path) for path in paths]))[0]
    return detector, images.tensors


def _random(options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    case = Case(tuple(options.size), options.images)
    return case.teacher, case.transformed()[0].tensors


def _compare(detector: nn.Module, images: Tensor, rounds: int) -> str:
    reports: dict[Precision, PrecisionReport | None] = {}
    teachers: dict[Precision, FrozenTeacher] = {}
    for precision in TRIED:
        teachers[precision] = FrozenTeacher(copy.deepcopy(detector))
        reports[precision] = optimize_for_inference(teachers[precision], images, precision)
    timed = alternate({name: partial(own.features, images) for name, own in teachers.items()}, rounds)
    rows = []
    for precision, own in timed.items():
        share, spread = ratio([own], [timed["as_built"]])
        done = reports[precision]
        rows.append(
            [
                f"`{precision}`",
                _kept(done),
                "{1:.2g} ({0})".format(*done.worst) if done else "",
                f"{own.median:.3f}",
                f"{share:.2f} ± {share * spread:.2f}",
            ]
        )
    return table(["`teacher.precision`", "in float32", "largest error", "seconds", "of as built"], rows)


def _kept(done: PrecisionReport | None) -> str:
    if done is None or done.half is None:
        return "all"
    return f"up to {done.float32[-1]}" if done.float32 else "nothing"


if __name__ == "__main__":
    main()

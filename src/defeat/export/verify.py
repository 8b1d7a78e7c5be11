"""The comparison of an exported graph with the student in PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from defeat.detectors.inference import detect
from defeat.export.check import Check
from defeat.export.graph.exportable import MULTIPLE
from defeat.export.graph_detector import GraphDetector, load_core, load_onnx
from defeat.export.onnx_file import TRACED
from defeat.export.student import TrainedStudent
from defeat.io.text import counted
from defeat.types import Prediction

log = logging.getLogger(__name__)

BOX_TOLERANCE = 0.5
"""Pixels by which a coordinate may differ."""
SCORE_TOLERANCE = 1e-3

NOISE = 0.03
"""Grey levels (of 255) by which pictures are changed to find out what is a tie."""
TRIALS = 8


def verify(
    student: TrainedStudent, path: Path, pictures: Sequence[Tensor], *, format: Literal["onnx", "core"]
) -> list[Check]:
    """Compare what a graph detects with what the student detects in PyTorch, as torchvision computes it.

    Both get the pictures themselves, so that resizing and padding are compared too. Detections of one label
    are the same where each coordinate differs by :data:`BOX_TOLERANCE` at most and the score by
    :data:`SCORE_TOLERANCE`, and both must give the same ones. Rounding decides whether a detection is there
    whose score lies at the threshold, or which overlaps another one just as much as is allowed: it may be
    missing on one side if it also comes or goes in PyTorch when the picture gets noise of :data:`NOISE`.

    Args:
        student: of which the graph was made.
        path: the file of the graph.
        pictures: (3, H, W) uint8, one at least.
        format: of the file.

    Raises:
        WeightsError: the file cannot be read.
    """
    graph = load_onnx(path) if format == "onnx" else load_core(path)
    checks = [_check(student.detector, graph, case) for case in _cases(pictures)]
    if all(check.passed and not check.detections for check in checks):
        log.warning(
            "%s: the student finds nothing on these pictures, so that its boxes could not be compared: name "
            "pictures with objects, data.root=FOLDER, or train it for longer",
            path,
        )
    return checks


class _Case(NamedTuple):
    name: str
    batches: list[list[Tensor]]
    size: tuple[int, int] | None = None
    """Height and width to compute at in place of the detector's own sizes."""


def _cases(pictures: Sequence[Tensor]) -> Iterator[_Case]:
    first = pictures[0]
    side = max(first.shape[1:])
    one_size = [_resized(pictures[i % len(pictures)], first.shape[1], first.shape[2]) for i in range(3)]
    yield _Case(f"{counted(len(pictures), 'pictures')}, batch 1", [[picture] for picture in pictures])
    yield _Case("batch 3, one size", [one_size])
    portrait, landscape = _resized(first, side, side * 2 // 3), _resized(first, side * 2 // 3, side)
    yield _Case("portrait", [[portrait]])
    yield _Case("landscape", [[landscape]])
    yield _Case("batch 3, several sizes", [[portrait, landscape, one_size[1]]])
    for name, size in (("as traced", TRACED[2:]), ("smallest", (MULTIPLE, MULTIPLE))):
        yield _Case(f"{size[0]} x {size[1]}, {name}", [[_resized(first, *size)]], (size[0], size[1]))
    # Grain, since cells of one colour have equal scores: any of them may be among the best.
    grain = torch.randint(110, 119, first.shape, generator=torch.Generator().manual_seed(0))
    yield _Case("no objects", [[grain.to(torch.uint8)]])


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    size = max(height, 1), max(width, 1)
    return interpolate(picture[None].float(), size, mode="bilinear")[0].round().to(torch.uint8)


@torch.inference_mode()
def _check(detector: nn.Module, graph: GraphDetector, case: _Case) -> Check:
    with _computing_at(case.size, detector, graph):
        compared = [part for batch in case.batches for part in _compare(detector, graph, batch)]
    same, ties, wrong = (sum(counts) for counts in zip(*(part[:3] for part in compared), strict=True))
    if wrong:
        note = f"{wrong:,} of {counted(same + ties + wrong, 'detections')} on one side only"
        return Check(case.name, False, torch.inf, torch.inf, note)
    boxes, scores = (max(part[column] for part in compared) for column in (3, 4))
    note = counted(same, "detections") + (f", {counted(ties, 'ties')}" if ties else "")
    return Check(case.name, True, boxes, scores, note, same)


class _Compared(NamedTuple):
    """The detections of a picture on both sides."""

    same: int
    ties: int
    wrong: int
    boxes: float
    """Largest difference of those that are the same, pixels."""
    scores: float


def _compare(detector: nn.Module, graph: GraphDetector, batch: Sequence[Tensor]) -> list[_Compared]:
    pairs = list(zip(detect(detector, batch), detect(graph, batch), strict=True))
    matches = [_match(*pair) for pair in pairs]
    trials: list[list[Prediction]] = []
    if any(match.lost or match.added for match in matches):
        generator = torch.Generator().manual_seed(0)
        noisy = [[_noisy(picture, generator) for picture in batch] for _ in range(TRIALS)]
        trials = [detect(detector, images) for images in noisy]
    compared = []
    for i, ((expected, found), match) in enumerate(zip(pairs, matches, strict=True)):
        of_picture = [trial[i] for trial in trials]
        wavering = {row for trial in of_picture for row in _match(expected, trial).lost}
        possible = {row for trial in of_picture for row in set(match.added) - set(_match(trial, found).added)}
        ties = len(wavering.intersection(match.lost)) + len(possible)
        wrong = len(match.lost) + len(match.added) - ties
        compared.append(_Compared(match.same, ties, wrong, match.boxes, match.scores))
    return compared


def _noisy(picture: Tensor, generator: torch.Generator) -> Tensor:
    return picture + NOISE * (2 * torch.rand(picture.shape, generator=generator) - 1)


class _Match(NamedTuple):
    same: int
    lost: list[int]
    """Rows of the expected detections that are not found."""
    added: list[int]
    """Rows of the detections that were not expected."""
    boxes: float
    scores: float


def _match(expected: Prediction, found: Prediction) -> _Match:
    """Pair the detections of two sides, the best first, each with the nearest that is left."""
    boxes = (expected["boxes"][:, None] - found["boxes"]).abs().amax(-1)  # (N, M)
    scores = (expected["scores"][:, None] - found["scores"]).abs()
    close = (boxes <= BOX_TOLERANCE) & (scores <= SCORE_TOLERANCE)
    close &= expected["labels"][:, None] == found["labels"]
    distance = torch.where(close, boxes + scores, torch.inf)
    lost, rows, columns = [], list[int](), list[int]()
    for row in range(len(distance)):
        nearest = int(distance[row].argmin()) if distance.shape[1] else -1
        if nearest < 0 or distance[row, nearest].isinf():
            lost.append(row)
            continue
        distance[:, nearest] = torch.inf
        rows.append(row)
        columns.append(nearest)
    added = sorted(set(range(distance.shape[1])).difference(columns))
    differences = [float(part[rows, columns].max()) if rows else 0.0 for part in (boxes, scores)]
    return _Match(len(rows), lost, added, differences[0], differences[1])


@contextmanager
def _computing_at(size: tuple[int, int] | None, *detectors: nn.Module) -> Iterator[None]:
    """Let detectors resize to this height and width in place of their own sizes."""
    transforms = [cast(Any, detector).transform for detector in detectors]
    before = [(transform.min_size, transform.max_size, transform.fixed_size) for transform in transforms]
    if size:
        for transform in transforms:
            transform.min_size, transform.max_size, transform.fixed_size = (min(size),), max(size), None
    try:
        yield
    finally:
        for transform, (least, most, fixed) in zip(transforms, before, strict=True):
            transform.min_size, transform.max_size, transform.fixed_size = least, most, fixed

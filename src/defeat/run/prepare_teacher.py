"""A teacher is frozen and made cheaper once, before a training begins."""

from __future__ import annotations

import copy
import logging
from contextlib import suppress
from typing import Any, cast

import torch
from torch import nn

from defeat.data import DetectionDataModule, DetectionDataset
from defeat.detectors import Detector, FrozenTeacher
from defeat.detectors.inference import to_unit_range
from defeat.detectors.teacher_precision import TOLERANCE, is_exact, optimize_for_inference
from defeat.errors import DataError

log = logging.getLogger(__name__)

IMAGES = 2
"""How many images decide on the teacher's precision: a fixed number, so that a resumed run decides alike."""

LOOKED_AT = 16
"""The number of records, at most, that are searched for images that can be decoded."""


def prepare_teacher(
    teacher: Detector, student: nn.Module, data: DetectionDataModule, device: torch.device
) -> FrozenTeacher:
    """Freeze a teacher, optimise it on its device as its ``precision`` says, and log what was done.

    Its precision is decided on the first training images, as the student's transform makes them: these are
    the tensors that it is to see. Without such an image it stays as built; the training will say what is
    wrong with the images.
    """
    frozen = FrozenTeacher(teacher.model, teacher.known_labels)
    images = _images(data)
    if not images:
        return frozen
    transform = copy.deepcopy(cast(Any, student).transform).eval()
    with torch.no_grad():
        batch = transform(to_unit_range([image.to(device) for image in images]))[0].tensors  # (B, 3, H, W)
    report = optimize_for_inference(frozen.to(device), batch, teacher.precision or "auto")
    if report is None:
        return frozen
    log.info("teacher: %s", report)
    if not is_exact(report.errors):
        log.warning(
            "teacher.precision=%s errs by more than %g: teacher.precision=auto keeps what it must in float32",
            teacher.precision,
            TOLERANCE,
        )
    return frozen


def _images(data: DetectionDataModule) -> list[torch.Tensor]:
    dataset = DetectionDataset(data.read("train"))
    images: list[torch.Tensor] = []
    for index in range(min(len(dataset), LOOKED_AT)):
        if len(images) == IMAGES:
            break
        with suppress(DataError):
            images.append(dataset[index][0])
    return images

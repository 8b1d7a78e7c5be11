"""What is done to a teacher once, before a training begins."""

from __future__ import annotations

import copy
import logging
from contextlib import suppress
from typing import Any, cast

import torch
from torch import nn

from defeat.data import DetectionDataModule, DetectionDataset
from defeat.detectors import Detector
from defeat.detectors.teacher_precision import TOLERANCE, exact, rewrite
from defeat.errors import DataError
from defeat.training.module import to_unit_range

log = logging.getLogger(__name__)

IMAGES = 2
"""That the teacher's precision is decided on: always the same, so that a resumed run decides alike."""

LOOKED_AT = 16
"""Records, at most, in which images are looked for that can be decoded."""


def prepare_teacher(
    teacher: Detector, student: nn.Module, data: DetectionDataModule, device: torch.device
) -> None:
    """Rewrite a teacher's arithmetic as its ``precision`` says, on its device, and say what was done.

    Judged on the first training images, as the student's transform makes them: the tensors that it is to
    see. Without such an image nothing is done; the training will say what is wrong with them.
    """
    images = _images(data)
    if not images:
        return
    transform = copy.deepcopy(cast(Any, student).transform).eval()
    model = teacher.model.requires_grad_(False).eval().to(device)
    with torch.no_grad():
        seen = transform(to_unit_range([image.to(device) for image in images]))[0].tensors
    done = rewrite(model, seen, teacher.precision or "auto")
    if done is None:
        return
    log.info("teacher: %s", done)
    if not exact(done.errors):
        log.warning(
            "teacher.precision=%s errs by more than %g: teacher.precision=auto keeps what it must in float32",
            teacher.precision,
            TOLERANCE,
        )


def _images(data: DetectionDataModule) -> list[torch.Tensor]:
    dataset = DetectionDataset(data.read("train"))
    images: list[torch.Tensor] = []
    for index in range(min(len(dataset), LOOKED_AT)):
        if len(images) == IMAGES:
            break
        with suppress(DataError):
            images.append(dataset[index][0])
    return images

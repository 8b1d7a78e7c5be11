"""The student's weights in a file, and beside it the Python file that loads them without this project."""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from defeat import __version__
from defeat.export.check import Check
from defeat.export.load_script import NAME, load_script
from defeat.export.student import TrainedStudent
from defeat.io.atomic_write import replacing, write_text
from defeat.training.module import detect

WeightFormat = Literal["state_dict", "safetensors"]

FILES: dict[WeightFormat, str] = {"state_dict": "student.pth", "safetensors": "student.safetensors"}


def write_weights(student: TrainedStudent, folder: Path, form: WeightFormat) -> Path:
    """Write the weights and ``load_student.py``, which loads them strictly into torchvision's own model.

    Returns:
        The path of the weights.

    Raises:
        ConfigError: see :func:`~defeat.export.load_script.load_script`.
        StorageError: a file cannot be written.
    """
    path = folder / FILES[form]
    script = load_script(student, path.name)
    tensors = {name: value.detach().clone() for name, value in student.detector.state_dict().items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    with replacing(path) as part:
        if form == "safetensors":
            save_file(tensors, part, about(student))
        else:
            torch.save(tensors, part)
    write_text(folder / NAME, script)
    return path


def about(student: TrainedStudent) -> dict[str, str]:
    """Describe the weights in texts, as the metadata of safetensors files has to be."""
    return {
        "format": "pt",
        "classes": json.dumps(student.classes),
        "class_ids": json.dumps(student.class_ids),
        "checkpoint_sha256": student.sha256,
        "defeat": __version__,
    }


def verify_weights(student: TrainedStudent, path: Path, images: Sequence[Tensor]) -> list[Check]:
    """Compare the detector that ``load_student.py`` makes of the file with the student, on each image.

    Args:
        student: where the file comes from.
        path: of the weights; the Python file lies beside it.
        images: (3, H, W) uint8.
    """
    detector: nn.Module = runpy.run_path(str(path.with_name(NAME)))["load"](path)
    return [_compare(student, detector, image) for image in images]


@torch.inference_mode()
def _compare(student: TrainedStudent, detector: nn.Module, image: Tensor) -> Check:
    (expected,), (loaded,) = detect(student.detector, [image]), detect(detector, [image])
    name = f"{image.shape[1]} x {image.shape[2]} pixels"
    if not expected["labels"].equal(loaded["labels"]):
        counts = f"{len(expected['labels'])} detections, {len(loaded['labels'])} of the file"
        return Check(name, False, float("inf"), float("inf"), counts)
    boxes, scores = (
        float((expected[key] - loaded[key]).abs().max()) if len(expected["labels"]) else 0.0
        for key in ("boxes", "scores")
    )
    return Check(name, boxes == 0 and scores == 0, boxes, scores, f"{len(expected['labels'])} detections")

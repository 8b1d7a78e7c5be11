"""The student's weights in a file, and beside it the Python file that loads them without this project."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from defeat import __version__
from defeat.detectors.inference import detect
from defeat.export.check import Check
from defeat.export.load_script import NAME, load_script
from defeat.export.student import TrainedStudent
from defeat.io.atomic_write import replacing, write_text
from defeat.io.text import counted
from defeat.types import Prediction


def write_weights(student: TrainedStudent, path: Path) -> None:
    """Write the weights and ``load_student.py``, which loads them strictly into torchvision's own model.

    Args:
        student: it is not changed.
        path: a ``.safetensors`` file, whose metadata names classes and checkpoint; anything else is written
            by ``torch.save`` and holds tensors by name alone.

    Raises:
        ConfigError: see :func:`~defeat.export.load_script.load_script`.
        StorageError: a file cannot be written.
    """
    script = load_script(student, path.name)
    tensors = {name: value.detach().clone() for name, value in student.detector.state_dict().items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            part.write_bytes(save(tensors, _about(student)))  # save_file would hide it from other users
        else:
            torch.save(tensors, part)
    write_text(path.with_name(NAME), script)


def _about(student: TrainedStudent) -> dict[str, str]:
    """Describe the weights in texts, as the metadata of safetensors files has to be."""
    return {
        "format": "pt",
        "classes": json.dumps(student.classes),
        "class_ids": json.dumps(student.class_ids),
        "checkpoint_sha256": student.sha256,
        "defeat": __version__,
    }


def load_weights(path: Path) -> nn.Module:
    """Make torchvision's detector of exported weights by the Python file beside them."""
    detector: nn.Module = runpy.run_path(str(path.with_name(NAME)))["load"](path)
    return detector


def verify_weights(student: TrainedStudent, path: Path, images: Sequence[Tensor]) -> list[Check]:
    """Compare the detector that ``load_student.py`` makes of the file with the student, to the bit.

    Args:
        student: where the file comes from.
        path: of the weights; the Python file lies beside it.
        images: (3, H, W) uint8.
    """
    detector = load_weights(path)
    with torch.inference_mode():
        pairs = [(detect(student.detector, [x])[0], detect(detector, [x])[0]) for x in images]
    count = sum(len(expected["labels"]) for expected, _ in pairs)
    boxes, scores = (max(_difference(*pair, key) for pair in pairs) for key in ("boxes", "scores"))
    passed = boxes == scores == 0
    return [Check(counted(len(images), "pictures"), passed, boxes, scores, counted(count, "detections"))]


def _difference(expected: Prediction, loaded: Prediction, key: Literal["boxes", "scores"]) -> float:
    if not expected["labels"].equal(loaded["labels"]):
        return math.inf
    differences = (expected[key] - loaded[key]).abs()
    return float(differences.max()) if differences.numel() else 0.0

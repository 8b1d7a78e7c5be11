"""The student of a checkpoint, with all that the checkpoint says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from defeat.detectors import WeightFile, read_weights
from defeat.detectors.weights import load_plain, sha256
from defeat.errors import ConfigError, WeightsError
from defeat.io.text import quote
from defeat.run.checkpoint_detector import build_student


@dataclass(frozen=True)
class TrainedStudent:
    """A student as its checkpoint describes it."""

    detector: nn.Module
    """A torchvision-like detector on the CPU, float32, in eval mode, with its trained weights."""
    classes: tuple[str, ...]
    """K class names, label 1 first."""
    class_ids: tuple[int, ...]
    """K category ids of the data set that it was trained on; 1..K where that has none."""
    source: Path
    """The checkpoint."""
    sha256: str
    """Digest of the checkpoint file, in hexadecimal."""
    config: Mapping[str, Any] | None
    """The resolved configuration of its training."""
    file: WeightFile | None = None
    """The content of the checkpoint: the student's tensors, the configuration's nodes that may be built."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the checkpoint: ``global_step``, ``curves``, and under ``defeat`` the teacher's file
    and the fingerprints of the data."""
    averaged: bool | None = None
    """Whether its weights are averaged ones (EMA), where the checkpoint holds both; else None."""


def read_student(checkpoint: str | Path, *, ema: bool | None = None) -> TrainedStudent:
    """Build the student of a checkpoint of ``defeat-train``, or the detector of a file of ``defeat-import``.

    Args:
        checkpoint: the path of the file.
        ema: of a file with averaged weights beside raw ones, True takes the averaged and False the raw ones;
            None takes the averaged ones, as an evaluation does.

    Raises:
        ConfigError: the file is no checkpoint of this project.
        WeightsError: the file cannot be read, or its weights do not fit the detector that it describes.
    """
    file = read_weights(checkpoint, ema=ema)
    if file.classes is None or file.config is None:
        raise ConfigError(
            f"{file.source or checkpoint} is no checkpoint of this project, which alone says what detector "
            "and which classes it is of: give one of defeat-train, checkpoint=<run>/checkpoints/best.ckpt"
        )
    path = Path(checkpoint).expanduser()
    # a file of defeat-import says all in its metadata, which the reading above has taken
    content = {} if path.suffix.lower() == ".safetensors" else load_plain(path, mapped=True)
    detector = build_student(file, file.classes)
    return TrainedStudent(
        detector.float().cpu().eval().requires_grad_(False),
        file.classes,
        _class_ids(path, content.get("defeat") or {}, len(file.classes)),
        path,
        sha256(path),
        file.config,
        file,
        {key: content.get(key) for key in ("defeat", "global_step", "curves")},
        ema is not False if "current_model_state" in content else None,
    )


def _class_ids(path: Path, own: Mapping[str, Any], classes: int) -> tuple[int, ...]:
    ids = own.get("class_ids")
    if ids is None:
        return tuple(range(1, classes + 1))
    if not isinstance(ids, list) or len(ids) != classes or not all(type(number) is int for number in ids):
        raise WeightsError(f"{path}: its list of category ids is {quote(ids)}; it is damaged")
    return tuple(ids)

"""A checkpoint or an exported graph as a detector that is ready to find objects."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from defeat.detectors import read_weights
from defeat.errors import ConfigError, WeightsError
from defeat.export.extra import require_extra
from defeat.export.graph_detector import load_onnx
from defeat.io.safe_read import is_file
from defeat.predict.predictor import Predictor
from defeat.run.checkpoint_detector import build_student, build_teacher


def load(
    checkpoint: str | PathLike[str],
    *,
    teacher: bool = False,
    student: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    precision: str | None = None,
    ema: bool | None = None,
    download: bool = False,
) -> Predictor:
    """Load a trained detector.

    Args:
        checkpoint: a checkpoint of ``defeat-train``; an ``.onnx`` file of ``defeat-export``; or weights that
            name their classes, such as a torchvision enum, together with ``student``.
        teacher: take the teacher of that run in place of its student.
        student: configuration of the detector (conf/detector); None for what the checkpoint says.
        device: see :class:`Predictor`.
        precision: see :class:`Predictor`; None for the precision of the training, or 32-true.
        ema: of a file with averaged weights beside raw ones, True takes the averaged and False the raw ones.
        download: allow torchvision weights to be fetched.

    Raises:
        ConfigError: the file does not say which detector or which classes it is of, or there is no teacher;
            or an ONNX file is asked for what it does not have.
        WeightsError: a file cannot be read or does not fit.
    """
    source = str(checkpoint)
    if source.lower().endswith(".onnx"):
        choices = {"teacher": teacher or None, "student": student, "ema": ema}
        return _load_onnx(source, choices, device=str(device), precision=precision)
    file = read_weights(source, download=download, ema=ema)
    if file.outputs is None:
        raise ConfigError(
            f"{source} does not name its classes: give a checkpoint of defeat-train, or weights of a "
            "torchvision enum"
        )
    classes = file.classes or file.outputs[1:]
    trained = file.config or {}
    if teacher:
        detector = build_teacher(file, classes, download=download)
    else:
        detector = build_student(file, classes, node=student)
    precision = precision or str((trained.get("trainer") or {}).get("precision") or "32-true")
    upright = (trained.get("data") or {}).get("exif") != "ignore"
    return Predictor(detector, classes, device=device, precision=precision, upright=upright)


def _load_onnx(source: str, choices: Mapping[str, Any], *, device: str, precision: str | None) -> Predictor:
    for key, value in choices.items():
        if value is not None:
            raise ConfigError(f"{key}: {source} is one exported student: leave it out")
    if device not in ("auto", "cpu") or precision not in (None, "32-true"):
        raise ConfigError(
            f"device={device}, precision={precision or 'null'}: {source} is computed in float32 on the CPU "
            "here; take the checkpoint, or a runtime of your own (docs/deploy.md)"
        )
    require_extra(source, "onnxruntime")
    if not is_file(Path(source).expanduser()):
        raise WeightsError(f"{source}: there is no such file")
    detector = load_onnx(Path(source).expanduser())
    classes = [entry["name"] for entry in detector.described["classes"]]
    upright = detector.described["preprocessing"]["exif_orientation"] == "applied"
    return Predictor(detector, classes, device="cpu", upright=upright)

"""Detectors as checkpoints describe them: the student that a run trained, and its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from defeat.config import build
from defeat.detectors import Detector, WeightFile, load_detector_weights
from defeat.detectors.weights import read_model
from defeat.errors import ConfigError


def build_student(
    file: WeightFile, classes: Sequence[str], *, node: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the detector that a file holds the weights of, and fill it with them.

    Args:
        file: the content of the file, see :func:`~defeat.detectors.read_weights`.
        classes: K class names; where the file names its own, the head's outputs are selected by name.
        node: configuration of the detector (conf/detector); None for what the file says itself.

    Raises:
        ConfigError: the file does not say of which detector it holds the weights, and ``node`` is None.
        WeightsError: the weights do not fit the detector or the classes.
    """
    if node is None:
        stored = file.node("student", "detector@student=<name>")
        if stored is None:
            raise ConfigError(
                f"{file.source} holds weights alone: say of which detector, detector@student=<name>"
            )
        node = {**stored, "ema": None}  # said of the weights that its training started from
    node = described_by_weights(node)
    # Everything comes from the file; what the training started from need not exist any more.
    detector: Detector = build(node, classes=list(classes), weights=None, backbone_weights=None)
    load_detector_weights(detector.model, file, classes=classes)
    return detector.model


def described_by_weights(node: Mapping[str, Any] | None) -> Any:
    """Give a detector whose model names no builder (detector@teacher=imported) that of its weights.

    Args:
        node: of conf/detector. What its model sets goes over what the file says.

    Returns:
        A copy with the builder and its settings; ``node`` itself where it names a builder.

    Raises:
        WeightsError: the weights do not say which detector they are of.
    """
    model = node.get("model") if node else None
    if node is None or not isinstance(model, Mapping) or model.get("_target_") is not None:
        return node
    given = {key: value for key, value in model.items() if value is not None}
    return {**node, "model": {**model, **read_model(node["weights"]), **given}}


def build_teacher(file: WeightFile, classes: Sequence[str], *, download: bool = False) -> nn.Module:
    """Build the teacher of the run that wrote a checkpoint, from the teacher's own weights.

    Raises:
        ConfigError: the run had no teacher.
        WeightsError: the teacher's weights are no longer where they were, or do not fit.
    """
    described = file.node("teacher", "a checkpoint of this project")
    if described is None:
        raise ConfigError(f"{file.source} is not of a distilled run: it has no teacher")
    allowed = download or bool(described.get("download"))
    detector: Detector = build(described, classes=list(classes), teacher=True, download=allowed)
    return detector.model

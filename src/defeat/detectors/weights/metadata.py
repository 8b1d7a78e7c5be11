"""What a safetensors file of this project says about its detector, in the metadata that the format offers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from defeat.detectors.class_order import BACKGROUND
from defeat.detectors.weights.plain_pickle import first_line
from defeat.detectors.weights.run_config import check_targets, copy_config
from defeat.detectors.weights.shipped import weight_path
from defeat.detectors.weights.weight_file import WeightFile
from defeat.errors import WeightsError
from defeat.io.safe_read import is_file
from defeat.io.text import quote

CLASSES, MODEL = "classes", "model"
"""Keys of the metadata: K class names, and the node of conf/detector that builds the detector, in JSON."""


def describe(classes: Sequence[str], model: Mapping[str, Any]) -> dict[str, str]:
    """Write the metadata by which :func:`read_weights` knows classes and settings of a detector.

    Args:
        classes: K class names, label 1 first.
        model: the builder as ``_target_``, and its arguments, in plain containers.
    """
    return {"format": "pt", CLASSES: json.dumps(list(classes)), MODEL: json.dumps(dict(model))}


def described(file: WeightFile, path: Path) -> WeightFile:
    """Add to the content of a safetensors file the classes and the settings that its metadata give.

    Raises:
        WeightsError: the metadata are damaged.
    """
    metadata = _metadata(path)
    if MODEL not in metadata:
        return file
    classes = _read(path, CLASSES, metadata)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"{path}: its list of class names is {quote(classes)}; it is damaged")
    node = {"_target_": "defeat.detectors.create_detector", "model": _model(path, metadata)}
    return file._replace(classes=tuple(classes), outputs=(BACKGROUND, *classes), config={"student": node})


def read_model(source: str | Path) -> dict[str, Any]:
    """Read the node of conf/detector that a file of ``defeat-import`` describes itself by.

    Raises:
        WeightsError: no such file, or one that does not say which detector it is of.
    """
    path = weight_path(source)
    if not is_file(path):
        raise WeightsError(f"{path}: there is no such file")
    metadata = _metadata(path) if path.suffix.lower() == ".safetensors" else {}
    if MODEL not in metadata:
        raise WeightsError(
            f"{path} does not say which detector it is of, as files of defeat-import do: choose it by name, "
            "such as detector@teacher=frcnn_r50"
        )
    model = _model(path, metadata)
    check_targets(model, "the detector", str(path), "another file")
    return model


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as opened:
            return opened.metadata() or {}
    except Exception as error:  # its own
        raise WeightsError(f"{path} is not a readable safetensors file: {first_line(error)}") from error


def _model(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {**copy_config(path, _read(path, MODEL, metadata)), "_partial_": True}


def _read(path: Path, key: str, metadata: Mapping[str, str]) -> Any:
    try:
        return json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: its metadata {key!r} is no JSON; it is damaged") from None

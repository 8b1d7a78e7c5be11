"""Weights into detectors: safe reading, and an account of what fitted."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_weight
from torchvision.models.detection._utils import overwrite_eps

from defeat.errors import WeightsError

HEADS = ("roi_heads.box_predictor.", "head.classification_head.cls_logits.")
"""Parameters whose shape follows from the number of classes."""


ZERO_EPS = ("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", "RetinaNet_ResNet50_FPN_Weights.COCO_V1")
"""Weights that torchvision trained with frozen norms without epsilon, which its own builders see to."""


class WeightFile(NamedTuple):
    """What a weight source holds."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    """Class names, where the file is a checkpoint of this project; else None."""
    config: dict[str, Any] | None
    """The run's configuration, likewise."""


class LoadReport(NamedTuple):
    """Which keys of a source went into a model."""

    source: str
    matched: list[str]
    missing: list[str]
    """In the model, not in the source: left as initialised."""
    unexpected: list[str]
    """In the source, not in the model: unused."""
    mismatched: list[str]
    """In both with different shapes: left as initialised."""

    def __str__(self) -> str:
        counts = ", ".join(
            f"{len(keys)} {name}{_some(keys)}"
            for name, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("mismatched", self.mismatched),
            )
        )
        return f"{self.source}: {len(self.matched)} keys matched, {counts}"


def _some(keys: Sequence[str], most: int = 3) -> str:
    if not keys:
        return ""
    return f" ({', '.join(keys[:most])}{', ...' if len(keys) > most else ''})"


def read_weights(source: str | Path, *, download: bool = False) -> WeightFile:
    """Read a .pth/.pt/.ckpt/.safetensors file, or a torchvision weights enum by name.

    Nothing but tensors and plain containers is ever unpickled.

    Args:
        source: a path, or a name such as ``FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1``.
        download: allow a torchvision enum that is not in torch's cache to be fetched (checksum verified).

    Raises:
        WeightsError: no such file or enum, not a weight file, a pickle that holds code, or a download that
            was not allowed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name a weight file in it (.ckpt, .pth or .safetensors)")
    if path.is_file():
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return WeightFile(_read_enum(str(source), download), None, None)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> WeightFile:
    try:
        return WeightFile(load_file(path), None, None)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def _read_pickle(path: Path) -> WeightFile:
    try:
        with warnings.catch_warnings():
            # Of a newer pickle protocol: such a file is refused or read all the same.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} refused: it is damaged, or holds more than tensors and plain containers and could run "
            "code on loading; save its state_dict alone and use that file"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is not a readable weight file: {_first_line(error)}") from error
    return _unwrap(path, content)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unwrap(path: Path, content: Any) -> WeightFile:
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state_dict")
    own = content.get("defeat")
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: not a state_dict or checkpoint")
    if not isinstance(own, Mapping):
        return WeightFile(tensors, None, None)
    student = {k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")}
    return WeightFile(student, tuple(own["classes"]), dict(own["config"]))


def _read_enum(name: str, download: bool) -> dict[str, Tensor]:
    try:
        weights: WeightsEnum = get_weight(name)
    except (ValueError, AttributeError, KeyError):
        raise WeightsError(
            f"weights {name!r}: no such file, and no torchvision weights of that name "
            "(such as ResNet50_Weights.IMAGENET1K_V1)"
        ) from None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if not cached.is_file() and not download:
        raise WeightsError(
            f"weights {name} are not in torch's cache ({cached}) and downloads are off: "
            "set download=true beside them, or put the file there"
        )
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (RuntimeError, OSError) as error:  # a wrong checksum; no network, no such address, a full disk
        raise WeightsError(f"weights {name} could not be fetched: {_first_line(error)}") from error


def load_detector_weights(
    detector: nn.Module, source: str | Path, *, new_head: bool = False, download: bool = False
) -> tuple[LoadReport, WeightFile]:
    """Fill a whole detector.

    Args:
        new_head: accept a classification head of another class count and leave it as initialised.

    Raises:
        WeightsError: unreadable source, or a detector that would not be fully loaded.
    """
    file = read_weights(source, download=download)
    report = _load(detector, file.tensors, str(source))
    if str(source) in ZERO_EPS:
        overwrite_eps(detector, 0.0)
    open_keys = [*report.missing, *report.mismatched]
    if new_head:
        open_keys = [k for k in open_keys if not k.startswith(HEADS)]
    if not open_keys:
        return report, file
    if all(k.startswith(HEADS) for k in report.mismatched) and not report.missing:
        raise WeightsError(
            f"{report}. The classification head has another class count: "
            "set new_head=true beside these weights to start it anew"
        )
    raise WeightsError(f"{report}. These weights are of another model: check the detector's settings")


def load_backbone_weights(detector: nn.Module, source: str | Path, *, download: bool = False) -> LoadReport:
    """Fill ``detector.backbone.body`` from a classifier's weights; the classifier's own layers stay unused.

    Raises:
        WeightsError: unreadable source, or a backbone that would not be fully loaded.
    """
    tensors = read_weights(source, download=download).tensors
    body = detector.get_submodule("backbone.body")
    report = _load(body, {k.removeprefix("features."): v for k, v in tensors.items()}, str(source))
    if report.missing or report.mismatched:
        raise WeightsError(f"{report}. These weights are of another backbone: check `backbone`")
    return report


def _load(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy every tensor that fits by name and shape."""
    own = model.state_dict()
    matched = [k for k, v in own.items() if k in tensors and tensors[k].shape == v.shape]
    with torch.no_grad():
        for key in matched:
            own[key].copy_(tensors[key])
    return LoadReport(
        source,
        matched,
        # A counter that only BatchNorm with momentum=None reads; frozen norms have none.
        missing=[k for k in own if k not in tensors and not k.endswith("num_batches_tracked")],
        unexpected=[k for k in tensors if k not in own and not k.endswith("num_batches_tracked")],
        mismatched=[k for k, v in own.items() if k in tensors and tensors[k].shape != v.shape],
    )

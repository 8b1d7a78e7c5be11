"""Weight files: safe reading, and what they say about themselves. ``loading.py`` puts them into detectors."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import WeightsEnum, get_weight

from defeat.detectors.class_order import BACKGROUND
from defeat.errors import WeightsError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
"""The package's own weights, each ``<name>.safetensors``."""


class WeightFile(NamedTuple):
    """What a weight source holds."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    """Class names, where the file is a checkpoint of this project; else None."""
    config: dict[str, Any] | None
    """The run's configuration, likewise."""
    outputs: tuple[str, ...] | None = None
    """What each output of the classification head stands for, background first: of a checkpoint of this
    project or a torchvision enum; None where the file does not say."""
    enum: str | None = None
    """A torchvision enum's own name (``DEFAULT`` is another name of one)."""


def shipped_weights() -> dict[str, Path]:
    """Weight files of this package, by the names that configurations give them."""
    return {path.stem: path for path in sorted(ASSETS.glob("*.safetensors"))}


def weight_path(source: str | Path) -> Path:
    """Where a source would lie if it is a file, which an enum is not.

    The name of a shipped file means that file whatever lies in the working folder, so that a configuration
    means the same everywhere; ``./<name>`` is the file of the folder.
    """
    shipped = shipped_weights().get(source) if isinstance(source, str) else None
    return shipped or Path(source).expanduser()


def read_weights(source: str | Path, *, download: bool = False) -> WeightFile:
    """Read a .pth/.pt/.ckpt/.safetensors file, one that this package ships, or a torchvision weights enum.

    Nothing but tensors and plain containers is ever unpickled.

    Args:
        source: a path, the name of a shipped file (``scenes_teacher``), or a name such as
            ``FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1``. See :func:`weight_path` for which comes first.
        download: allow a torchvision enum that is not in torch's cache to be fetched (checksum verified).

    Raises:
        WeightsError: no such file or enum, not a weight file, a pickle that holds code, or a download that
            was not allowed.
    """
    path = weight_path(source)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name a weight file in it (.ckpt, .pth or .safetensors)")
    if path.is_file():
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _read_enum(str(source), download)


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
    classes = tuple(own["classes"])
    return WeightFile(student, classes, dict(own["config"]), outputs=(BACKGROUND, *classes))


def _read_enum(name: str, download: bool) -> WeightFile:
    try:
        weights: WeightsEnum = get_weight(name)
    except (ValueError, AttributeError, KeyError):
        shipped = ", ".join(shipped_weights()) or "none"
        raise WeightsError(
            f"weights {name!r}: no such file, none that this package ships ({shipped}), and no torchvision "
            "weights of that name (such as ResNet50_Weights.IMAGENET1K_V1)"
        ) from None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if not cached.is_file() and not download:
        raise WeightsError(
            f"weights {name} are not in torch's cache ({cached}) and downloads are off: "
            "set download=true beside them, or put the file there"
        )
    try:
        tensors = dict(weights.get_state_dict(progress=False, check_hash=True))
    except (RuntimeError, OSError) as error:  # a wrong checksum; no network, no such address, a full disk
        raise WeightsError(f"weights {name} could not be fetched: {_first_line(error)}") from error
    outputs = tuple(weights.meta["categories"]) if "categories" in weights.meta else None
    return WeightFile(tensors, None, None, outputs, f"{type(weights).__name__}.{weights.name}")

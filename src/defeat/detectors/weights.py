"""Weight files: safe reading, and what they say about themselves. ``loading.py`` puts them into detectors."""

from __future__ import annotations

import functools
import hashlib
import importlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import WeightsEnum, get_weight

from defeat.config import conf_dir
from defeat.detectors.class_order import BACKGROUND
from defeat.errors import WeightsError
from defeat.io.safe_read import is_dir, is_file
from defeat.io.text import one_line, quote

ASSETS = Path(__file__).resolve().parents[1] / "assets"
"""The package's own weights, each ``<name>.safetensors``."""

_MOST_NODES = 50_000
"""Values in a run's configuration; there are some hundred. A pickle can hold one list in many places."""

_DEEPEST = 50
"""How deep a run's configuration is nested; ours are by 8."""

_LONGEST_NAME = 200
"""Characters in the name of a tensor; ours have up to 70."""

_OPEN_MODULES = ("torchvision.models.detection", "torchvision.transforms.v2")
"""Whose public names a checkpoint's configuration may build, beside what the package's own conf/ names."""


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
    source: str = ""
    """What messages call it."""

    def node(self, key: str, instead: str) -> dict[str, Any] | None:
        """A part of the run's configuration that may be built; None where there is none.

        Building a configuration calls what its ``_target_`` names. The file may come from anybody, so only
        what this package's own configuration files name is called for it, and public builders and transforms
        of torchvision.

        Args:
            key: a key of the configuration's top level, such as ``student``.
            instead: what the user can give to build something else, for the message.

        Raises:
            WeightsError: the part names anything else.
        """
        part = (self.config or {}).get(key)
        if not isinstance(part, dict):
            return None
        for target in _targets(part):
            if not _may_be_built(target):
                raise WeightsError(
                    f"{self.source}: its configuration wants {key} to be built by {quote(target)}, which is "
                    f"no part of this package and could do anything: if you know it, give {instead}"
                )
        return part


def shipped_weights() -> dict[str, Path]:
    """Weight files of this package, by the names that configurations give them."""
    return {path.stem: path for path in sorted(ASSETS.glob("*.safetensors"))}


def weight_path(source: str | Path) -> Path:
    """Where a source would lie if it is a file, which an enum is not.

    The name of a shipped file means that file whatever lies in the working folder, so that a configuration
    means the same everywhere; ``./<name>`` is the file of the folder.
    """
    shipped = shipped_weights().get(source) if isinstance(source, str) else None
    if shipped:
        return shipped
    try:
        return Path(source).expanduser()
    except RuntimeError:  # ~name of no user
        return Path(source)


def read_weights(source: str | Path, *, download: bool = False) -> WeightFile:
    """Read a .pth/.pt/.ckpt/.safetensors file, one that this package ships, or a torchvision weights enum.

    Nothing but tensors and plain containers is ever unpickled, from the cache of downloads neither. What
    comes back is fit to be copied into a detector: dense, finite, and backed by as many bytes as it claims.

    Args:
        source: a path, the name of a shipped file (``scenes_teacher``), or a name such as
            ``FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1``. See :func:`weight_path` for which comes first.
        download: allow a torchvision enum that is not in torch's cache to be fetched (checksum verified).

    Raises:
        WeightsError: no such file or enum, not a weight file, a pickle that holds code, numbers that are not
            finite, or a download that was not allowed or has another checksum than its name says.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise WeightsError(f"weights must be a path or a name, got {quote(source)}")
    path = weight_path(source)
    if is_dir(path):
        raise WeightsError(f"{path} is a folder: name a weight file in it (.ckpt, .pth or .safetensors)")
    if is_file(path):
        safe = path.suffix.lower() == ".safetensors"
        return _read_safetensors(path) if safe else _unwrap(path, load_plain(path))
    return _read_enum(str(source), download)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> WeightFile:
    try:
        tensors = load_file(path)
    except Exception as error:  # its own, and torch's about types and shapes
        raise WeightsError(f"{path} is not a readable safetensors file: {_first_line(error)}") from error
    return WeightFile(_sound(path, tensors), None, None, source=str(path))


def load_plain(path: Path) -> Any:
    """Unpickle a file of tensors and plain containers; raises like :func:`read_weights`."""
    _refuse_packed(path)
    try:
        with warnings.catch_warnings():
            # Of a newer pickle protocol: such a file is refused or read all the same.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} refused: it is damaged, or holds more than tensors and plain containers and could run "
            "code on loading; save its state_dict alone and use that file"
        ) from error
    except Exception as error:  # nearly any: the pickle calls torch with whatever arguments it holds
        raise WeightsError(f"{path} is not a readable weight file: {_first_line(error)}") from error


def _refuse_packed(path: Path) -> None:
    """``torch.save`` never compresses; a file that does can unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # no zip, as files of torch before 1.6, or a damaged one: torch says so
        return
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError(f"{path} refused: it is compressed, which torch.save does not do; save it anew")


def _first_line(error: BaseException) -> str:
    return one_line((str(error).splitlines() or [type(error).__name__])[0], 200)


def _unwrap(path: Path, content: Any) -> WeightFile:
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state_dict")
    own = content.get("defeat")
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise WeightsError(f"{path} holds no tensors by name: not a state_dict or checkpoint")
    if not isinstance(own, Mapping):
        return WeightFile(_sound(path, tensors), None, None, source=str(path))
    student = {k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")}
    if not student:
        raise WeightsError(f"{path} is a checkpoint of this project without its detector's tensors")
    classes = own.get("classes")
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"{path}: its list of class names is {quote(classes)}; it is damaged")
    outputs = (BACKGROUND, *classes)
    return WeightFile(
        _sound(path, student), tuple(classes), _config(path, own.get("config")), outputs, source=str(path)
    )


def _sound(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, if a detector can take them."""
    size = path.stat().st_size
    for key, value in tensors.items():
        named = f"{path}: {quote(key)}"
        if not key.isprintable() or len(key) > _LONGEST_NAME:
            raise WeightsError(f"{named} is the name of no detector's tensor; the file is damaged")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            kind = f"{value.layout}, {value.dtype}, {value.device}"
            raise WeightsError(f"{named} is no plain tensor of real numbers ({kind}); save it dense")
        if value.numel() * value.element_size() > size:  # one number spread over any shape
            shape = "x".join(map(str, value.shape))
            raise WeightsError(f"{named} claims {shape} numbers, more than the file's {size} bytes hold")
        if value.is_floating_point() and not _is_usable(key, value):
            raise WeightsError(
                f"{named} holds numbers that are not finite: the training that wrote it went wrong; use an "
                "earlier checkpoint"
            )
    return tensors


def _is_usable(key: str, value: Tensor) -> bool:
    """Finite; but a variance may be infinite, as half precision makes 65,520: that channel is silent."""
    if value.element_size() < 2:  # little is defined on 8-bit floats
        value = value.float()
    wrong = torch.isnan(value) if key.endswith("running_var") else ~torch.isfinite(value)
    return not wrong.any()


def _config(path: Path, config: object) -> dict[str, Any]:
    """A copy of a run's configuration, which is plain containers without interpolations, as it was saved."""
    left = _MOST_NODES

    def copy(value: object, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise WeightsError(f"{path}: its configuration is larger than that of any run")
        if isinstance(value, Mapping):
            return {_key(key): copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, str) and "${" in value:
            raise WeightsError(f"{path}: its configuration holds {quote(value)}, which no run writes")
        if value is None or isinstance(value, str | int | float):
            return value
        raise WeightsError(f"{path}: its configuration holds a {type(value).__name__}, which no run writes")

    def _key(key: object) -> str | int | float:
        if isinstance(key, str | int | float):
            return key
        raise WeightsError(f"{path}: its configuration has the key {quote(key)}, which no run writes")

    if not isinstance(config, Mapping):
        raise WeightsError(f"{path}: its configuration is {quote(config)}; it is damaged")
    plain: dict[str, Any] = copy(config, 0)
    return plain


def _targets(node: Any) -> Iterator[object]:
    """Everything that building a node would call."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for item in node.values():
            yield from _targets(item)
    elif isinstance(node, list):
        for item in node:
            yield from _targets(item)


def _may_be_built(target: object) -> bool:
    if not isinstance(target, str):
        return False
    if target in _own_targets():
        return True
    module, _, name = target.rpartition(".")
    if module not in _OPEN_MODULES or name.startswith("_"):
        return False
    found = getattr(importlib.import_module(module), name, None)
    return callable(found) and str(getattr(found, "__module__", "")).startswith(f"{module}.")


@functools.cache
def _own_targets() -> frozenset[str]:
    """What the package's configuration files name. No prefix, for modules lead on to what they import."""
    texts = (path.read_text(encoding="utf-8") for path in conf_dir().rglob("*.yaml"))
    return frozenset(target for text in texts for target in re.findall(r"_target_: *([\w.]+)", text))


def _read_enum(name: str, download: bool) -> WeightFile:
    try:
        weights: WeightsEnum = get_weight(name)
    except (ValueError, AttributeError, KeyError):
        shipped = ", ".join(shipped_weights()) or "none"
        raise WeightsError(
            f"weights {quote(name, 160)}: no such file, none that this package ships ({shipped}), and no "
            "torchvision weights of that name (such as ResNet50_Weights.IMAGENET1K_V1)"
        ) from None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if not cached.is_file() and not download:
        raise WeightsError(
            f"weights {name} are not in torch's cache ({cached}) and downloads are off: "
            "set download=true beside them, or put the file there"
        )
    # Not WeightsEnum.get_state_dict: that unpickles whatever code the cached file holds, and compares the
    # checksum only when it fetches.
    digest = _checksum(cached.name)
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(cached), digest, progress=False)
        except (RuntimeError, OSError) as error:  # a wrong checksum; no network, no such address, a full disk
            raise WeightsError(f"weights {name} could not be fetched: {_first_line(error)}") from error
    elif digest is not None and not sha256(cached).startswith(digest):
        raise WeightsError(
            f"weights {name}: the file in torch's cache ({cached}) has another checksum than its name says: "
            "delete it, and set download=true to fetch it"
        )
    tensors = _unwrap(cached, load_plain(cached)).tensors
    outputs = tuple(weights.meta["categories"]) if "categories" in weights.meta else None
    return WeightFile(tensors, None, None, outputs, f"{type(weights).__name__}.{weights.name}", name)


def _checksum(name: str) -> str | None:
    """The start of the SHA-256 that a file of torch's model zoo has in its name; None where it has none."""
    found = re.search(r"-([a-f0-9]{8,})\.", name)
    return found[1] if found else None

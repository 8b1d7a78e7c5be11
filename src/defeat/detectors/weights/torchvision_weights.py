"""Weights that torchvision publishes, from torch's cache or the network."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torchvision.models import WeightsEnum, get_model_weights, get_weight, list_models

from defeat.detectors.weights.plain_pickle import first_line, load_plain
from defeat.detectors.weights.shipped import sha256, shipped_weights
from defeat.detectors.weights.weight_file import WeightFile, unwrap
from defeat.errors import WeightsError
from defeat.io.text import quote


def read_enum(name: str, download: bool, ema: bool | None) -> WeightFile:
    """Read torchvision weights by name; raises like :func:`~defeat.detectors.weights.read_weights`."""
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
    digest = checksum(cached.name)
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(cached), digest, progress=False)
        except (RuntimeError, OSError) as error:  # a wrong checksum; no network, no such address, a full disk
            raise WeightsError(f"weights {name} could not be fetched: {first_line(error)}") from error
    elif digest is not None and not sha256(cached).startswith(digest):
        raise WeightsError(
            f"weights {name}: the file in torch's cache ({cached}) has another checksum than its name says: "
            "delete it, and set download=true to fetch it"
        )
    tensors = unwrap(cached, load_plain(cached), ema).tensors
    outputs = tuple(weights.meta["categories"]) if "categories" in weights.meta else None
    return WeightFile(tensors, None, None, outputs, f"{type(weights).__name__}.{weights.name}", name)


def published(file: WeightFile, path: Path) -> WeightFile:
    """Add to a file what torchvision says of it, where it is one of torchvision's detectors by its name and
    content: what its outputs stand for."""
    digest = checksum(path.name)
    if digest is None or not sha256(path).startswith(digest):
        return file
    for name in list_models(module=torchvision.models.detection):
        for weights in get_model_weights(name):
            if Path(urlparse(weights.url).path).name == path.name:
                outputs = tuple(weights.meta["categories"])
                return file._replace(outputs=outputs, enum=f"{type(weights).__name__}.{weights.name}")
    return file


def checksum(name: str) -> str | None:
    """Return the start of a file's SHA-256, which torch's model zoo has in its name; None where it is not."""
    found = re.search(r"-([a-f0-9]{8,})\.", name)
    return found[1] if found else None

"""Names of classes for weights that do not bring them along."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from defeat.detectors.class_order import BACKGROUND, UNUSED
from defeat.errors import ConfigError, WeightsError
from defeat.io.safe_read import is_file
from defeat.io.text import quote

COCO80 = "coco80"

COCO91: tuple[str, ...] = tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
"""torchvision's 91 outputs: background, and COCO's ids up to 90, of which 10 stand for nothing."""


def coco_names() -> list[str]:
    """Return COCO's 80 class names in the order of their ids, which is that of both frameworks."""
    return [name for name in COCO91 if name not in (BACKGROUND, UNUSED)]


def find_classes(given: str | None, meta: Any, count: int, source: str) -> tuple[list[str], str]:
    """Name the K classes of a file.

    Args:
        given: ``coco80``, a file, or None for what the file says itself.
        meta: the record that mmdetection stores beside the weights.
        count: K.
        source: for messages.

    Returns:
        K names, and where they are from.

    Raises:
        WeightsError: nothing names them, or there is another number of them.
        ConfigError: ``given`` is no file, or holds no names.
    """
    stored = stored_classes(meta)
    if given is not None:
        names, origin = named_classes(given), f"classes={given}"
        if stored is not None and stored != names and len(stored) == count:
            raise WeightsError(
                f"{source} names its classes itself, {quote(stored[:3])} ..., and classes={given} others: "
                "leave classes out"
            )
    elif stored is not None:
        names, origin = stored, "the file"
    else:
        hint = "classes=coco80 for COCO's, or " if count == 80 else ""
        raise WeightsError(
            f"{source} does not name its {count} classes: give {hint}classes=FILE with one name a line"
        )
    if len(names) != count:
        raise WeightsError(
            f"{source} has {count} classes, but {origin} names {len(names)}: give classes=FILE with one name "
            "a line, in the order of its training"
        )
    return names, origin


def stored_classes(meta: Any) -> list[str] | None:
    """Return the classes that mmdetection's ``meta`` names; None where it names none."""
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")
    for record, key in ((inner, "classes"), (inner, "CLASSES"), (meta, "CLASSES"), (meta, "classes")):
        names = record.get(key) if isinstance(record, Mapping) else None
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def named_classes(given: str) -> list[str]:
    """Read ``coco80`` or a file: one name a line, a JSON list, or COCO annotations with their categories.

    Raises:
        ConfigError: no such file, or no names in it.
    """
    if given == COCO80:
        return coco_names()
    path = Path(given).expanduser()
    if not is_file(path):
        raise ConfigError(f"classes={given} is neither coco80 nor a file with one name a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(text)) if path.suffix.lower() == ".json" else text.split("\n")
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ConfigError(
            f"classes={given} cannot be read ({type(error).__name__}): give one name a line"
        ) from error
    names = [name.strip() for name in names if name.strip()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        what = "no names" if twice is None else f"{quote(twice)} twice"
        raise ConfigError(f"classes={given} holds {what}: give one name a line, each once")
    return names


def _from_json(content: Any) -> Sequence[str]:
    if isinstance(content, Mapping):
        rows = sorted(content["categories"], key=lambda category: category["id"])
        content = [category["name"] for category in rows]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError("no list of names")
    return content

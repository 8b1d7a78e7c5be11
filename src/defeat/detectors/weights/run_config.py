"""The configuration that a checkpoint carries: it may come from anybody, and building one calls functions."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from defeat.config import conf_dir
from defeat.errors import WeightsError
from defeat.io.text import quote

_MOST_NODES = 50_000
"""Values in a run's configuration; there are some hundred. A pickle can hold one list in many places."""


_DEEPEST = 50
"""How deep a run's configuration is nested; ours are by 8."""


_OPEN_MODULES = ("torchvision.models.detection", "torchvision.transforms.v2")
"""Whose public names a checkpoint's configuration may build, beside what the package's own conf/ names."""


def copy_config(path: Path, config: object) -> dict[str, Any]:
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


def check_targets(part: dict[str, Any], key: str, source: str, instead: str) -> None:
    """Refuse a part of a configuration that names anything else than this package's own and torchvision's.

    Args:
        part: the part that is to be built.
        key: the part's key, for the message.
        source: what messages call the file.
        instead: what the user can give to build something else, for the message.

    Raises:
        WeightsError: the part names anything else.
    """
    for target in _targets(part):
        if not _may_be_built(target):
            raise WeightsError(
                f"{source}: its configuration wants {key} to be built by {quote(target)}, which is "
                f"no part of this package and could do anything: if you know it, give {instead}"
            )


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

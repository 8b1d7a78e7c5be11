"""What the keys of an export can be, told before anything large is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defeat.errors import ConfigError
from defeat.io.text import quote

FORMATS = ("state_dict", "safetensors", "onnx", "core")

LEAST, MOST = 32, 10_000
"""Pixels of a picture's side; with the least of them the deepest stage of a backbone has one cell."""

SWITCHES = ("nms", "verify", "timing")


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse values that cannot be right.

    Args:
        config: of the export (conf/export.yaml), in plain containers.

    Raises:
        ConfigError: with the key, its value, and what it can be.
    """
    chosen = format_names(config)
    unknown = [name for name in chosen if name not in FORMATS]
    if unknown or not chosen:
        wrong = quote(unknown[0] if unknown else [])
        raise ConfigError(f"format={wrong} is none of {', '.join(FORMATS)}, or a list of them")
    for key in SWITCHES:
        if not isinstance(config[key], bool):
            raise ConfigError(f"{key} must be true or false, got {quote(config[key])}")
    if type(config["images"]) is not int or config["images"] < 0:
        raise ConfigError(f"images={quote(config['images'])} must be a whole number from 0 on")
    if config["evaluation"] is not None and not isinstance(config["evaluation"], str):
        raise ConfigError(f"evaluation={quote(config['evaluation'])} must be a file, or null")
    _check_size(config["size"])
    _check_card(config["card"])


def format_names(config: Mapping[str, Any]) -> list[Any]:
    """The formats that the configuration names, each once."""
    named = config["format"]
    return list(dict.fromkeys(named)) if isinstance(named, list) and _hashable(named) else [named]


def _hashable(names: list[Any]) -> bool:
    return all(isinstance(name, str) for name in names)


def _check_size(size: Any) -> None:
    if size is None:
        return
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
        raise ConfigError(f"size={quote(size)} must be [height, width] in pixels, or null")
    if not LEAST <= min(size) <= max(size) <= MOST:
        raise ConfigError(f"size={size}: a side has at least {LEAST} pixels, and at most {MOST:,}")


def _check_card(card: Any) -> None:
    if not isinstance(card, dict):
        raise ConfigError(f"card={quote(card)} must be a group of keys, such as card.license")
    for key, value in card.items():
        if key == "datasets":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ConfigError(f"card.datasets={quote(value)} must be a list of names")
        elif value is not None and not isinstance(value, str):
            raise ConfigError(f"card.{key}={quote(value)} must be a text, or null")

"""What the keys of an import can be, told before anything large is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defeat.errors import ConfigError
from defeat.io.text import quote

KINDS = ("auto", "mmdetection", "detectron2", "torchvision")

STYLE_NAMES = ("auto", "pytorch", "caffe", "bgr")


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse values that cannot be right.

    Args:
        config: of the import (conf/import.yaml), in plain containers.

    Raises:
        ConfigError: with the key, its value, and what it can be.
    """
    for key, choices in (("kind", KINDS), ("style", STYLE_NAMES)):
        if config[key] not in choices:
            raise ConfigError(f"{key}={quote(config[key])} is none of {', '.join(choices)}")
    if config["ema"] not in (None, True, False):
        raise ConfigError(f"ema must be true, false or null, got {quote(config['ema'])}")
    for key in ("source", "classes", "license", "output"):
        if not isinstance(config[key], str) and (config[key] is not None or key in ("source", "output")):
            raise ConfigError(f"{key}={quote(config[key])} must be a text")
    if not config["output"].lower().endswith(".safetensors"):
        raise ConfigError(
            f"output={config['output']} must end in .safetensors, whose metadata say which detector it is of"
        )

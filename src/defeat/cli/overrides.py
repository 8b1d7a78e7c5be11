"""The overrides of a command line: which of them choose a file of conf/, and values that cannot be right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from defeat.config import conf_dir
from defeat.errors import ConfigError

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    ListConfig: "a list",
    DictConfig: "a group of keys",
}
"""Names of the types of defaults in messages."""

ALTERNATIVES: dict[str, tuple[type, ...]] = {
    "deterministic": (str,),
    "devices": (int, str, ListConfig),
    "image_set": (str, ListConfig),
    "min_size": (int, ListConfig),
    "precision": (int,),
    "roots": (str, ListConfig),
    "test": (NoneType,),
    "train_transforms": (NoneType,),
    "val_batch_size": (NoneType,),
    "val_check_interval": (int, float),
    "version": (int,),
}
"""Types that the last word of a key may have beside the type of its default."""

REQUIRED = ("student", "data", "optim", "trainer")
"""Groups that a run cannot do without; null leaves the others out."""


def parse(words: Sequence[str]) -> Iterator[tuple[str, Override]]:
    """Parse the words that are overrides; words that Hydra will refuse are left out."""
    parser = OverridesParser.create()
    for word in words:
        if "=" in word and not word.startswith("-"):
            try:
                yield word, parser.parse_override(word)
            except HydraException:
                continue


def is_choice(override: Override) -> bool:
    """Whether the override chooses a file of a group, such as ``data=coco``, rather than sets a value."""
    return bool(override.key_or_group) and (conf_dir() / override.key_or_group).is_dir()


def check_choices(words: Sequence[str]) -> None:
    """Refuse what Hydra fails on without naming the word.

    Raises:
        ConfigError: a word has no key, or gives a group something else than names.
    """
    for word, override in parse(words):
        group, value = override.key_or_group, override.value()
        if not group:
            raise ConfigError(f"{word!r} cannot be read as KEY=VALUE: the key is missing")
        if not is_choice(override) or override.is_delete() or override.is_sweep_override():
            continue
        if not all(isinstance(name, str) for name in (value if isinstance(value, list) else [value])):
            names = ", ".join(sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")))
            key = word.partition("=")[0].lstrip("+")
            raise ConfigError(f"{word} is no choice of {group}: there are {names}; ~{key} leaves it out")


def check_types(config: DictConfig, defaults: DictConfig, prefix: str = "") -> None:
    """Refuse values of another type than their defaults, before a library meets them.

    Args:
        config: composed from the whole command line.
        defaults: composed from its choices alone.
        prefix: key of both in the whole configuration, with a dot at its end.

    Raises:
        ConfigError: with the key, the value, and what is expected.
    """
    for name in map(str, defaults):
        if OmegaConf.is_missing(defaults, name) or name not in config:
            continue
        key, value, default = f"{prefix}{name}", config[name], defaults[name]
        if isinstance(value, DictConfig) and isinstance(default, DictConfig):
            check_types(value, default, f"{key}.")
        elif not _fits(key, value, default):
            quoted = f": write \"{key}='{value}'\"" if isinstance(default, str) else ""
            shown = json.dumps(value, default=str)
            raise ConfigError(f"{key} must be {KINDS[type(default)]}, got {shown}{quoted}")


def _fits(key: str, value: Any, default: Any) -> bool:
    first, last = key.split(".")[0], key.split(".")[-1]
    if default is None or type(value) in (type(default), *ALTERNATIVES.get(last, ())):
        return True
    if value is not None:
        return type(value) is int and type(default) is float
    if isinstance(default, DictConfig):
        return first not in REQUIRED
    # Lightning has a default of its own behind each setting of the trainer.
    return first == "trainer" or isinstance(default, str | ListConfig)

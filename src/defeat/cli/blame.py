"""Which word of the command line made a library fail, where nothing had checked the word before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from defeat.config import compose_config, conf_dir

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    ListConfig: "a list",
    dict: "a group of keys",
    DictConfig: "a group of keys",
    type(None): "null",
}
"""What the types of values are called in messages."""

NAMES = {
    str: r"str|string|literal",
    bool: r"bool",
    int: r"int",
    float: r"float",
    list: r"list|ListConfig",
    dict: r"dict|DictConfig",
    type(None): r"None|NoneType",
}
"""What the libraries' messages call the types that are given by mistake."""

OPTIONAL = ("callbacks", "distiller", "logger", "measure", "nonfinite", "optimized_metric", "teacher")
"""What null leaves out, rather than being a mistake."""


def parse(words: Sequence[str]) -> Iterator[tuple[str, Override]]:
    """Words of the command line that are overrides, each with what Hydra understands by it."""
    parser = OverridesParser.create()
    for word in words:
        if "=" in word and not word.startswith("-"):
            try:
                yield word, parser.parse_override(word)
            except HydraException:
                continue


def is_choice(override: Override) -> bool:
    """Whether it chooses a file of a group, such as ``data=coco``, rather than sets a value."""
    return bool(override.key_or_group) and (conf_dir() / override.key_or_group).is_dir()


def blame(error: BaseException, config_name: str, words: Sequence[str]) -> str | None:
    """Find the override that a library's error is about, and put both into one line.

    That is an override whose key the message names, or whose value is of another type than the default where
    the message names that type. None if there is no such override: then the program may be at fault.
    """
    if not isinstance(error, (TypeError, ValueError, AttributeError)):
        return None
    text = " ".join(str(error).split())
    overrides = [(word, o) for word, o in parse(words) if not o.is_sweep_override()]
    defaults = _defaults(config_name, [word for word, override in overrides if is_choice(override)])
    for word, override in overrides:
        value = override.value()
        default = _default(defaults, override.key_or_group)
        if _differ(override, default) and _find(text, NAMES[type(value)]) is not None:
            return f"{word}: {KINDS[type(default)]} is expected, not {KINDS[type(value)]} ({text})"
    named = {word: _find(text, re.escape(o.key_or_group.rpartition(".")[2])) for word, o in overrides}
    places = {place: word for word, place in named.items() if place is not None}
    if places and _is_about_arguments(error):
        return f"{places[min(places)]}: {text}"
    return None


def _defaults(config_name: str, choices: Sequence[str]) -> DictConfig:
    """The configuration that the command line's choices give without its values."""
    try:
        return compose_config(config_name, [*choices, "run_dir=."])
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):
        return OmegaConf.create()


def _default(defaults: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(defaults, key, throw_on_missing=False, default=None)
    except OmegaConfBaseException:  # a key below what is no group
        return None


def _differ(override: Override, default: Any) -> bool:
    """Whether the type of the value is likely to be a mistake. Much that is text may also be a number."""
    value = override.value()
    if isinstance(default, DictConfig) and isinstance(value, str | bool | int | float | list):
        return not is_choice(override)
    if isinstance(default, bool | int):
        return isinstance(value, str | list | dict | float | None)
    if isinstance(default, float):
        return isinstance(value, str | list | dict | None)
    # Deeper, such as in callbacks.progress=null, it is how parts are left out.
    key = override.key_or_group
    return value is None and default is not None and "." not in key and key not in OPTIONAL


def _is_about_arguments(error: BaseException) -> bool:
    return isinstance(error, ValueError) or (isinstance(error, TypeError) and "argument" in str(error))


def _find(text: str, names: str) -> int | None:
    """Where one of the names stands in the text as a word."""
    found = re.search(rf"\b(?:{names})\b", text)
    return found.start() if found else None

"""Errors of Hydra and OmegaConf in one line that says what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from defeat.config import compose_config
from defeat.errors import DefeatError


def explain(error: BaseException, config_name: str, words: Sequence[str]) -> str:
    """Turn an error into a line.

    Args:
        error: what was raised.
        config_name: the primary configuration, where the right names are looked up.
        words: the command line's words.
    """
    text = str(error)
    if isinstance(error, DefeatError):
        return text
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], config_name, words)
    if found := re.search(r"Could not find '([^']+)'", text):
        return _unknown_choice(found[1], text)
    return _flat(text)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _unknown_key(key: str, config_name: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, list(_known_keys(key, config_name, words)), n=1)
    hint = f"did you mean {close[0]}?" if close else "--help lists all keys"
    return f"unknown key {key}: {hint} (+{key}=... would add a new one)"


def _known_keys(key: str, config_name: str, words: Sequence[str]) -> Iterator[str]:
    """Keys of the configuration that the other words compose; of the plain one where they fail too."""
    others = [w for w in words if "=" in w and not w.lstrip("+~").startswith((key, "hydra."))]
    for overrides in (others, []):
        try:
            yield from _flatten(compose_config(config_name, overrides))
            return
        except (HydraException, OmegaConfBaseException):
            continue


def _flatten(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, config):
        key = f"{prefix}{name}"
        yield key
        if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
            node = config[name]
            if isinstance(node, DictConfig):
                yield from _flatten(node, f"{key}.")


def _unknown_choice(choice: str, text: str) -> str:
    group, _, name = choice.rpartition("/")
    _, _, listed = text.partition("Available options in")
    options = re.findall(r"^\s+(\S+)\s*$", listed, re.MULTILINE)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"no {group} named {name}: {hint}there are {', '.join(options) or 'none'}"

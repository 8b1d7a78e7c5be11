"""Errors in one line that says what to do."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterator, Sequence

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from defeat.cli.blame import blame, is_choice, parse
from defeat.config import compose_config, conf_dir
from defeat.errors import DefeatError
from defeat.io.atomic_write import cannot_write
from defeat.io.text import one_line

_LONGEST = 4000
"""Characters; the longest lines list all experiments."""

NO_CHOICE = "Config group override must be a string or a list"
"""How Hydra begins its ValueError about ``logger=null``, without a word on which group it is."""


SWEEP_PLUGINS = ("hydra_optuna_sweeper", "hydra_submitit_launcher", "hydra/launcher/submitit")
"""What of the extra ``sweep`` Hydra names where it is not installed."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the system that are about a file to be written, whoever writes it."""


def explain(error: BaseException, config_name: str, words: Sequence[str]) -> str | None:
    """Turn an error that the user can mend into a line; None for any other.

    Args:
        error: what was raised.
        config_name: the primary configuration, where the right names are looked up.
        words: the command line's words.
    """
    line = _explain(error, config_name, words)
    return None if line is None else _flat(line)


def _explain(error: BaseException, config_name: str, words: Sequence[str]) -> str | None:
    text = str(error)
    if isinstance(error, DefeatError):
        cause = _innermost(error) if isinstance(error.__cause__, InstantiationException) else None
        return (blame(cause, config_name, words) if cause else None) or _without_traceback(text)
    if isinstance(error, InstantiationException) and isinstance(_innermost(error), DefeatError):
        return str(_innermost(error))
    if any(name in text for name in SWEEP_PLUGINS) and re.search("ModuleNotFound|Could not find", text):
        return "this kind of sweep needs further packages: pip install 'defeat[sweep]'"
    if isinstance(error, RuntimeError) and "srun" in text:
        return f"{text} Without SLURM, sweep here (leave hydra/launcher out) or with hydra/launcher=local"
    if isinstance(error, OSError) and error.errno in NO_ROOM:  # a logger's, say
        return cannot_write(error.filename or "a file of the run", error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], text, config_name, words)
    if found := re.search(r"Could not find '([^']+)'", text):
        return _unknown_choice(found[1], text)
    if isinstance(error, ValueError) and text.startswith(NO_CHOICE):
        return _no_choice(config_name, words) or NO_CHOICE
    if isinstance(error, (HydraException, OmegaConfBaseException, MisconfigurationException)):
        return text
    if found := re.search(r"^full_key: (\S+)", text, re.MULTILINE):  # Hydra's TypeErrors about a node
        return f"{found[1]}: {text[: found.start()]}"
    if isinstance(error, TypeError) and (line := _no_choice(config_name, words)):  # a list that holds null
        return line
    return blame(error, config_name, words)


def _flat(text: str) -> str:
    """One line, in which nothing that a file or a word holds can change the terminal."""
    return one_line(" ".join(text.split()), _LONGEST)


def _innermost(error: BaseException) -> BaseException:
    seen = {id(error)}  # what is raised again from what Hydra made of it is its own cause
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    return error


def _without_traceback(text: str) -> str:
    """The message alone where a DataLoader put its worker's traceback around it."""
    if "Original Traceback" not in text:
        return text
    *_, message = re.split(r"^[\w.]+Error: ", text, flags=re.MULTILINE)
    return message


def _unreadable(error: OverrideParseException) -> str:
    reasons = [s for s in error.message.splitlines() if not s.startswith(("See https", "Error parsing"))]
    return f"{error.override!r} cannot be read as KEY=VALUE: {' '.join(reasons)}"


def _unknown_key(key: str, text: str, config_name: str, words: Sequence[str]) -> str:
    if found := re.search(r"Did you mean to override (?:one of )?([^?]+)\?", text):
        return f"unknown key {key}: did you mean {found[1].replace(', ', ' or ')}?"
    if found := re.search(r"To append to your default list use (\S+)", text):
        return f"{key} has no choice yet that could be replaced: write {found[1]}"
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
        except (HydraException, OmegaConfBaseException, ValueError, TypeError):  # the last two: no choice
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
    options = re.findall(r"^\t(\S+)$", listed, re.MULTILINE)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"no {group} named {name}: {hint}there are {', '.join(options) or 'none'}"


def _no_choice(config_name: str, words: Sequence[str]) -> str | None:
    """Name the word that gives a group null, or a number; None where there is no such word."""
    own = OmegaConf.load(conf_dir() / f"{config_name}.yaml")
    for word, override in parse(words):
        group = override.key_or_group
        if not group:
            return f"{word!r} cannot be read as KEY=VALUE: the key is missing"
        value = override.value()
        if not is_choice(override) or all(
            isinstance(v, str) for v in (value if type(value) is list else [value])
        ):
            continue
        # What the primary configuration has as null can be without a choice.
        if value is None and OmegaConf.select(own, override.package or group, default="") is None:
            return f"{word}: null is no choice of {group}; ~{word.removesuffix('=null')} leaves it out"
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        return f"{word} is no choice of {group}: there are {', '.join(options)}"
    return None

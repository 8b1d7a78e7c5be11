"""Errors in one line that says what to do."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterator, Sequence
from traceback import walk_tb

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from defeat.cli.overrides import unreadable
from defeat.config import compose_config, spelled
from defeat.errors import DefeatError
from defeat.io.atomic_write import cannot_write
from defeat.io.text import one_line

_LONGEST = 4000
"""Characters of a line; the longest lines list all experiments."""

SWEEP_PLUGINS = (
    *("hydra_optuna_sweeper", "defeat.optuna_study"),
    *("hydra_submitit_launcher", "hydra/launcher/submitit"),
)
"""Names in Hydra's errors about parts of the extra ``sweep`` that are not installed."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the system that are about a file to be written, whoever writes it."""


def explain(error: BaseException, config_name: str, words: Sequence[str]) -> str | None:
    """Turn an error that the user can correct into a line; None for any other.

    Args:
        error: what was raised.
        config_name: the primary configuration, where the right names are looked up.
        words: the command line's words.
    """
    line = _explain(error, config_name, words)
    # Nothing that a file or a word holds can change the terminal.
    return None if line is None else one_line(" ".join(line.split()), _LONGEST)


def _explain(error: BaseException, config_name: str, words: Sequence[str]) -> str | None:
    text = str(error)
    if isinstance(error, DefeatError):
        return _without_traceback(text)
    if isinstance(error, InstantiationException) and isinstance(_innermost(error), DefeatError):
        return str(_innermost(error))
    absent = isinstance(_innermost(error), ModuleNotFoundError) or re.search(
        "ModuleNotFound|Could not find", text
    )
    if absent and any(name in text for name in SWEEP_PLUGINS):
        return "this kind of sweep needs further packages: pip install 'defeat[sweep]'"
    if isinstance(error, RuntimeError) and "srun" in text:
        return f"{text} Without SLURM, sweep here (leave hydra/launcher out) or with hydra/launcher=local"
    if isinstance(error, OSError) and error.errno in NO_ROOM:  # a logger's, say
        return cannot_write(error.filename or "a file of the run", error)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if found := re.match(r"Ambiguous value for argument '(.*)'$", text.partition("\n")[0]):
        key, _, value = found[1].partition("=")
        others = f"{key}=[{value}] is a list, and quotes make a text: {spelled(key, value)}"
        return f"{found[1]}: -m starts a run for each value, {others}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1], text, config_name, words)
    if found := re.search(r"Could not find '([^']+)'", text):
        return _unknown_choice(found[1], text)
    if isinstance(error, (HydraException, OmegaConfBaseException)) or _is_lightnings(error):
        return text
    if isinstance(error, ValueError) and _raised_in(error).startswith("omegaconf."):  # a name inside a list
        return f"a key of the command line cannot be set: {text}"
    if found := re.search(r"^full_key: (\S+)", text, re.MULTILINE):  # Hydra's TypeErrors about a node
        return f"{found[1]}: {text[: found.start()]}"
    return None


def _is_lightnings(error: BaseException) -> bool:
    """Whether Lightning refuses its settings, by an error of its own or by a plain one.

    Nothing is imported for that: where Lightning has not been imported it has raised nothing.
    """
    if any(parent.__name__ == "MisconfigurationException" for parent in type(error).__mro__):
        return True
    # A RuntimeError is what its callbacks say of a metric that nobody logs.
    callback = isinstance(error, RuntimeError) and _raised_in(error).startswith(
        "lightning.pytorch.callbacks."
    )
    return callback or (isinstance(error, ValueError) and _raised_in(error).startswith("lightning."))


def _raised_in(error: BaseException) -> str:
    """Name the module that raised an error; empty for one that was never raised."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return modules[-1] if modules else ""


def _innermost(error: BaseException) -> BaseException:
    seen = {id(error)}  # what is raised again from what Hydra made of it is its own cause
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    return error


def _without_traceback(text: str) -> str:
    """Extract the message alone where a DataLoader put its worker's traceback around it."""
    if "Original Traceback" not in text:
        return text
    *_, message = re.split(r"^[\w.]+Error: ", text, flags=re.MULTILINE)
    return message


def _unknown_key(key: str, text: str, config_name: str, words: Sequence[str]) -> str:
    if (config_name, key) == ("export", "teacher"):
        return "teacher: students alone are exported; give the teacher's own checkpoint, as of its training"
    found = re.search(r"Did you mean to override (?:one of )?([^?]+)\?", text)
    if found and key not in found[1].split(", "):
        return f"unknown key {key}: did you mean {found[1].replace(', ', ' or ')}?"
    if found := re.search(r"To append to your default list use (\S+)", text):
        return f"{key} has no choice yet that could be replaced: write {found[1]}"
    known = [name for name in _known_keys(key, config_name, words) if name != key]
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "--help-all lists all keys"
    return f"unknown key {key}: {hint} (+{key}=... would add a new one)"


def _known_keys(key: str, config_name: str, words: Sequence[str]) -> list[str]:
    """List the keys of what the other words compose, or of the plain configuration where they fail too."""
    others = [w for w in words if "=" in w and not w.lstrip("+~").startswith((key, "hydra."))]
    try:
        return list(_flatten(compose_config(config_name, others)))
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):  # the last two: no choice
        return list(_flatten(compose_config(config_name)))


def _flatten(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, config):
        yield f"{prefix}{name}"
        if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
            node = config[name]
            if isinstance(node, DictConfig):
                yield from _flatten(node, f"{prefix}{name}.")


def _unknown_choice(choice: str, text: str) -> str:
    group, _, name = choice.rpartition("/")
    options = re.findall(r"^\t(\S+)$", text.partition("Available options in")[2], re.MULTILINE)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"no {group} named {name}: {hint}there are {', '.join(options) or 'none'}"

"""The overrides of a command line: texts as they are meant, choices of conf/, values that cannot be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from defeat.config import check_no_secrets, conf_dir, quoted, spelled
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
    "format": (ListConfig,),
    "image_set": (str, ListConfig),
    "layout": (NoneType,),
    "min_size": (int, ListConfig),
    "num_workers": (int, str),
    "precision": (int,),
    "roots": (str, ListConfig),
    "split": (NoneType,),
    "test": (NoneType,),
    "train_transforms": (NoneType,),
    "val_batch_size": (NoneType,),
    "val_check_interval": (int, float, str, DictConfig),
    "version": (int,),
}
"""Types that the last word of a key may have beside the type of its default."""

NAMES = {"evaluation.backend": ("faster_coco_eval", "pycocotools"), "split": ("val", "test")}
"""Values of keys that are refused here, since their own check would import all that an evaluation needs."""

TEXTS = (
    *("name", "monitor", "optimized_metric"),
    *(
        "checkpoint",
        "source",
        "ckpt_path",
        "teacher",
        "weights",
        "backbone_weights",
        "results",
        "evaluation",
        "path",
        "filename",
    ),
    *("root", "output", "output_root", "run_dir", "dir", "dirpath", "folder", "save_dir", "image_root"),
    *("annotation_file", "image_set", "class_map"),
)
"""Last words of the keys whose values are texts, most of them paths, whatever they look like.

A ``class_map`` is one where its names are no keys of Hydra's: ``{'traffic light': 'stop sign'}``.
"""

SWEEP = ("-m", "--multirun")

PLAIN_OPTIONS = ("--resolve", "--hydra-help", "--run", "-r", "--shell-completion", "-sc", "--info", "-i")
"""Other options of Hydra that stand alone."""

MODES = (*SWEEP, "--cfg", "-c", "--run", "-r", "--info", "-i", "--shell-completion", "-sc")
"""Options of which Hydra takes one."""

VALUE_OPTIONS = (
    *(
        "--cfg",
        "-c",
        "--package",
        "-p",
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
    ),
    *("--experimental-rerun",),
)
"""Those that a value follows."""

SET = ("name", "output_root", "run_dir", "output")
"""Keys of texts that a run cannot do without."""

REQUIRED = ("student", "data", "optim", "trainer", "evaluation")
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


def in_order(words: Sequence[str]) -> list[str]:
    """Put options behind the overrides, as Hydra's parser wants them, and give it those that it knows.

    Raises:
        ConfigError: a word begins like an option and is none.
    """
    overrides, options = [], []
    waiting = iter(words)
    for word in waiting:
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif name == "--help-all":
            options.append("--help")
        elif name in VALUE_OPTIONS and not equals:
            options += [word, *([value] if (value := next(waiting, None)) is not None else [])]
        elif name in VALUE_OPTIONS or word in (*SWEEP, *PLAIN_OPTIONS):
            options.append(word)
        else:
            raise ConfigError(_no_option(word, next(waiting, "")))
    modes = [word for word in options if word.partition("=")[0] in MODES]
    if len(modes) > 1:
        raise ConfigError(f"{' and '.join(modes)} do not go together: leave one of them out")
    return [*overrides, *options]


def _no_option(word: str, following: str) -> str:
    name, _, value = word.lstrip("-").partition("=")
    value = value or following or "..."
    written = f"{'+' if name == 'experiment' else ''}{name.replace('-', '_')}={value}"
    return f"{word} is no option: keys are written without dashes, {written}; --help lists keys and options"


def quote_texts(words: Sequence[str]) -> list[str]:
    """Quote the values of :data:`TEXTS` that Hydra would refuse, or take for a number, or strip.

    So ``name=2024`` is a text, and ``data.root=/data/set (1)`` a folder. What Hydra reads as a text, a list,
    null or a sweep stays as it is, and so do values with commas in a sweep.
    """
    sweep = any(word in SWEEP for word in words)
    return [_quote_text(word, sweep) for word in words]


def _quote_text(word: str, sweep: bool) -> str:
    key, _, value = word.partition("=")
    if not value or word.startswith("-") or key.rpartition(".")[2].lstrip("+") not in TEXTS:
        return word
    try:
        override = OverridesParser.create().parse_override(word)
        switch = key == "teacher" and isinstance(override.value(), bool)  # of defeat-predict
        is_text = switch or override.is_sweep_override() or not isinstance(override.value(), int | float)
        if is_text and value == value.strip():
            return word
    except HydraException:
        if sweep and "," in value:
            return word
    return f"{key}={quoted(value)}"


def unreadable(word: str) -> str:
    """Say how to write a word that Hydra's grammar refuses."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} is no KEY=VALUE; values with blanks stand in quotes: {spelled('name', 'a b')}"
    if not any(parse([f"{key}=1"])):
        return f"{word!r} cannot be read as KEY=VALUE: a key is like optim.optimizer.lr"
    brackets = "; a list is written [a,b]" if re.search(r"[][{}]", value) else ""
    return (
        f"{word!r} cannot be read as KEY=VALUE: if the value is a text, write {spelled(key, value)}{brackets}"
    )


def is_choice(override: Override) -> bool:
    """Whether the override chooses a file of a group, such as ``data=coco``, rather than sets a value."""
    return bool(override.key_or_group) and (conf_dir() / override.key_or_group).is_dir()


def check_choices(words: Sequence[str]) -> None:
    """Refuse what Hydra fails on without naming the word.

    Raises:
        ConfigError: a word has no key, gives a group something else than names, or gives a logger a secret.
    """
    for word, override in parse(words):
        group, value = override.key_or_group, override.value()
        if not group:
            raise ConfigError(f"{word!r} cannot be read as KEY=VALUE: the key is missing")
        if group.startswith("logger."):
            check_no_secrets({group.removeprefix("logger."): value})
        if not is_choice(override) or override.is_delete() or override.is_sweep_override():
            continue
        if not all(isinstance(name, str) for name in (value if isinstance(value, list) else [value])):
            names = ", ".join(sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")))
            key = word.partition("=")[0].lstrip("+")
            raise ConfigError(f"{word} is no choice of {group}: ~{key} leaves it out, or there are {names}")


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
            if value.get("_target_") == default.get("_target_"):  # another one has arguments of its own
                check_types(value, default, f"{key}.")
        elif isinstance(value, str) and (key == "student" or (key == "teacher" and "optim" in config)):
            raise ConfigError(f"{key}={value}: a detector is chosen by detector@{key}={value}")
        elif key in NAMES and value not in NAMES[key]:
            raise ConfigError(f"{key}={value} is none of {', '.join(NAMES[key])}")
        elif not _fits(key, value, default):
            hint = f": write {spelled(key, value)}" if isinstance(default, str) and value is not None else ""
            shown = json.dumps(value, default=str)
            raise ConfigError(f"{key} must be {KINDS[type(default)]}, got {shown}{hint}")


def _fits(key: str, value: Any, default: Any) -> bool:
    first, last = key.split(".")[0], key.split(".")[-1]
    if default is None or type(value) in (type(default), *ALTERNATIVES.get(last, ())):
        return True
    if value is not None:
        return type(value) is int and type(default) is float
    if isinstance(default, DictConfig):
        return first not in REQUIRED
    # Lightning has a default of its own behind each setting of the trainer.
    return first == "trainer" or (isinstance(default, str | ListConfig) and key not in SET)

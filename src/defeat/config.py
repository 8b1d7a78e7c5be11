"""Find conf/, compose configurations from it, and build objects from them."""

from __future__ import annotations

import inspect
import math
import os
import pkgutil
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_type_hints
from unicodedata import normalize

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from defeat.errors import ConfigError, DefeatError
from defeat.io.atomic_write import write_text
from defeat.io.safe_read import is_dir, is_file
from defeat.io.text import quote

CONFIG = "config.yaml"
"""The presence of this file makes a folder a run's."""


_OPTIONAL: Mapping[Any, tuple[type, ...]] = {
    kind | None: (*accepted, NoneType)
    for kind, accepted in ((int, (int,)), (float, (int, float)), (str, (str,)), (bool, (bool,)))
}
"""Annotations of arguments that may be null, and the types that they accept."""


_BARE = re.compile(r"[\w./~@%+-]+", re.ASCII)
"""Paths that neither a shell nor Hydra's grammar reads as anything else."""


def conf_dir() -> Path:
    """Find the folder of the YAML files: in the package in a wheel, at the top of the checkout otherwise."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"the configuration files are missing (looked near {here}): install the package again")


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration from Python, from any working folder, within a console script too.

    ``run_dir`` has to be among the overrides if it is used, since only a console script makes one.
    """
    # Hydra is a singleton, and refuses to start where a console script has it running already.
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return expand_paths(compose(name, overrides=list(overrides)))
    finally:
        GlobalHydra.instance().hydra = running


def quoted(value: str, quote: Quote = Quote.single) -> str:
    """Write a text as Hydra's grammar has it."""
    return QuotedString(text=value, quote=quote).with_quotes()


def spelled(key: str, value: object) -> str:
    """Write an override whose value is a text so that it can be copied into a shell."""
    word = f"{key}={quoted(str(value))}"
    if not re.search(r"[$`\"!\\]", word):
        return f'"{word}"'
    return shlex.quote(f"{key}={quoted(str(value), Quote.double)}")


def typed(key: str, value: object) -> str:
    """Write an override whose value is a text as one types it: bare, unless more would be read in it."""
    return f"{key}={value}" if _BARE.fullmatch(str(value)) else spelled(key, value)


def text_override(key: str, value: object) -> str:
    """Write an override that sets a text, such as a path, whatever Hydra would read in it bare."""
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))  # OmegaConf's own escape of an interpolation
    return f"{key}={quoted(escaped)}"


def expand_paths(config: DictConfig) -> DictConfig:
    """Write the paths of a configuration, in place, as the file system has them.

    ``~`` becomes the home folder, and the name of a file that exists only with its letters and accents
    composed, or only with them apart (Unicode's NFC and NFD, which look alike), becomes that one.
    """
    _expand(config)
    return config


def _expand(node: Any) -> None:
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig | ListConfig):
            _expand(value)
        elif isinstance(value, str) and (path := _expanded(value)) != value:
            node[key] = path


def _expanded(text: str) -> str:
    path = os.path.expanduser(text) if re.match(r"~\w*(/|$)", text) else text  # noqa: PTH111 - no error of its own
    if path.isascii() or _exists(path):
        return path
    return next((form for form in (normalize("NFC", path), normalize("NFD", path)) if _exists(form)), path)


def _exists(path: str) -> bool:
    return is_file(Path(path)) or is_dir(Path(path))


def build(node: Any, **arguments: Any) -> Any:
    """Instantiate a node by its ``_target_``.

    Args:
        node: a part of a configuration.
        arguments: further arguments of the target, which go over those of the node. They reach the target as
            they are: Hydra would read ``${...}`` and ``???`` in the name of a class as its own. A node
            that is marked ``_partial_`` is called with them.

    Raises:
        DefeatError: the target raised it; Hydra would hide it in an error of its own.
        ConfigError: the target does not exist, or does not take these arguments; so too for what is called
            later (``_partial_``), in this node or below it.
    """
    _check_types(node)
    try:
        built = _call(node, arguments) if arguments else instantiate(node)
    except (InstantiationException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, DefeatError):
            cause = cause.__cause__
        if not isinstance(cause, DefeatError):
            if isinstance(cause, TypeError):
                _check_partials(node)
            key = re.search(r"full_key: (\S+)", str(error))
            reason = " ".join(str(cause).split())
            raise ConfigError(f"{key[1] if key else 'configuration'}: {reason}") from error
    else:
        _check_partials(node)
        return built
    raise cause  # outside of the block: Hydra's error, whose cause it is, must not become its cause


def _call(node: Any, arguments: Mapping[str, Any]) -> Any:
    partial = instantiate(node, _partial_=True)
    key = f"\nfull_key: {node._get_full_key(None)}" if OmegaConf.is_config(node) else ""
    if not callable(partial):
        raise InstantiationException(f"it names no _target_{key}")
    try:
        return partial(**arguments)
    except Exception as error:
        raise InstantiationException(f"{error}{key}") from error


def build_factory(node: DictConfig) -> Callable[..., Any]:
    """Instantiate a node that is called later (``_partial_``), with errors as those of :func:`build`.

    Raises:
        ConfigError: see :func:`build`. When called, the factory raises it for values that the target refuses.
    """
    partial = build(node)

    def factory(*args: Any, **arguments: Any) -> Any:
        try:
            return partial(*args, **arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{node._get_full_key(None)}: {error}") from error

    return factory


def _check_types(node: Any) -> None:
    """Refuse values of another type than the arguments of this package's functions whose default is null."""
    if not OmegaConf.is_config(node):
        return
    for child in node.values() if isinstance(node, DictConfig) else node:
        _check_types(child)
    if not isinstance(node, DictConfig) or not str(node.get("_target_")).startswith("defeat."):
        return
    with suppress(ImportError, AttributeError, NameError):  # told where it is called
        target: Any = pkgutil.resolve_name(node._target_)
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
        for name in hints.keys() & node.keys():
            kinds = _OPTIONAL.get(hints[name])
            if kinds and not OmegaConf.is_missing(node, name) and type(node[name]) not in kinds:
                wanted = str(hints[name]).replace("None", "null")
                raise ConfigError(f"{node._get_full_key(name)} must be {wanted}, got {quote(node[name])}")


def _check_partials(node: Any) -> None:
    """Refuse keys that a target has no argument for, where it is called later (``_partial_``)."""
    if not OmegaConf.is_config(node):
        return
    for child in node.values() if isinstance(node, DictConfig) else node:
        _check_partials(child)
    if isinstance(node, DictConfig) and node.get("_partial_"):
        given = {key: None for key in map(str, node) if not key.startswith("_")}
        try:
            inspect.signature(pkgutil.resolve_name(node._target_)).bind_partial(**given)
        except TypeError as error:
            key, unknown = (
                node._get_full_key(None),
                re.search(r"unexpected keyword argument '(\w+)'", str(error)),
            )
            hint = f"; ~{key}.{unknown[1]} leaves it out" if unknown else ""
            raise ConfigError(f"{key}: {node._target_} {error}{hint}") from error
        except (ImportError, AttributeError, ValueError):  # no such target, or one in C without a signature
            return


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Resolve all interpolations into dicts, lists and scalars, which are what a checkpoint may hold.

    Raises:
        ConfigError: a value is nan, a whole number has more than 64 bits, or a text holds a zero byte, or
            ``${`` all the same, which its reader would resolve once more.
    """
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for key, value in leaves(plain):
        if isinstance(value, str) and ("${" in value or "\0" in value):
            raise ConfigError(f"{key}={quote(value)}: no value can hold ${{ or a zero byte")
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{key}=nan: no value can be nan")
        if isinstance(value, int) and value.bit_length() > 63:
            raise ConfigError(f"{key}={quote(value)}: no whole number can have more than 64 bits")
    return plain


SECRET = re.compile(r"(^|[._])(api_?key|password|passwd|secret|token|credentials?)$", re.IGNORECASE)
"""Ends of the keys of loggers whose values nobody may read."""

IN_ADDRESS = re.compile(r"//[^/@]*:[^/@]*@")
"""A name and a password in the address of a service."""


def check_no_secrets(loggers: Any) -> None:
    """Refuse secrets in the settings of loggers, which the records of a run and its checkpoints tell.

    Args:
        loggers: the ``logger`` entry of a configuration, or values by keys below it, in plain containers.

    Raises:
        ConfigError: with the key, without the value.
    """
    for key, value in leaves(loggers):
        if value is not None and (SECRET.search(key) or IN_ADDRESS.search(str(value))):
            raise ConfigError(
                f"logger.{key}: a run records its settings, so it takes no secrets by them: W&B reads "
                "WANDB_API_KEY or what `wandb login` keeps, MLflow MLFLOW_TRACKING_USERNAME and _PASSWORD"
            )


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values of one configuration, in plain containers, over those of another, key by key."""
    changed = {
        key: overlay(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in changes.items()
    }
    return {**base, **changed}


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of what plain containers hold."""
    if isinstance(node, dict | list):
        for name, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.yaml`` into a run's folder.

    Args:
        run_dir: the folder.
        config: in plain containers, see :func:`to_plain`.
    """
    write_text(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))

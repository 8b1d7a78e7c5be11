"""Where conf/ is, and how configurations become plain containers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from defeat.errors import ConfigError, DefeatError


def conf_dir() -> Path:
    """Folder of the YAML files: beside this file in a wheel, at the top of the checkout otherwise."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"the configuration files are missing (looked near {here}): install the package again")


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration from Python, from any working folder, within a console script too.

    ``run_dir`` has to be among the overrides where it is used, since only a console script makes one.
    """
    # Hydra is a singleton, and refuses to start where a console script has it running already.
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def build(node: Any, **arguments: Any) -> Any:
    """Instantiate a node by its ``_target_``.

    Raises:
        DefeatError: what the target raised, if it is one; Hydra would hide it in an error of its own.
        ConfigError: the target does not exist, or does not take these arguments.
    """
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, DefeatError):
            cause = cause.__cause__
        if not isinstance(cause, DefeatError):
            key = re.search(r"full_key: (\S+)", str(error))
            reason = " ".join(str(cause).split())
            raise ConfigError(f"{key[1] if key else 'configuration'}: {reason}") from error
    raise cause  # outside of the block: Hydra's error, whose cause it is, must not become its cause


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Resolve all interpolations into dicts, lists and scalars: what a checkpoint may hold."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))

"""Where conf/ is, and how configurations become plain containers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from defeat.errors import ConfigError


def conf_dir() -> Path:
    """Folder of the YAML files: beside this file in a wheel, at the top of the checkout otherwise."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"the configuration files are missing (looked near {here}): install the package again")


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration outside of a console script, from any working folder.

    ``run_dir`` has to be among the overrides where it is used, since only a console script makes one.
    """
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Resolve all interpolations into dicts, lists and scalars: what a checkpoint may hold."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))

"""The command line that Hydra started this process with, where it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from defeat.io.safe_read import is_file


def command_words() -> list[str] | None:
    """Return what the command line sets; None for a process that Python code began."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None


def in_sweep() -> bool:
    """Tell whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def swept_keys() -> list[str]:
    """Return the keys, or groups of conf/, that a sweep's command line gives several values."""
    if not in_sweep():
        return []
    sweep = Path(HydraConfig.get().sweep.dir, "multirun.yaml")
    words = OmegaConf.load(sweep).hydra.overrides.task if is_file(sweep) else []
    parsed = OverridesParser.create().parse_overrides(list(words))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def set_values(words: Sequence[str]) -> dict[str, str | None]:
    """Return the value, as text, of each key or group of conf/ that words of a command line set.

    What they delete has the value None.
    """
    parsed = OverridesParser.create().parse_overrides(list(words))
    return {
        override.key_or_group: None if override.is_delete() else override.get_value_element_as_str()
        for override in parsed
    }

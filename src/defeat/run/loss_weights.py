"""The weights of the losses in a run's configuration: fixed after a balance, and kept by a resumed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from defeat.config import to_plain
from defeat.detectors import read_weights
from defeat.distill import WeightKey, weight_keys
from defeat.errors import ConfigError


def fix_weights(config: DictConfig, weights: Mapping[str, float]) -> None:
    """Put weights into a run's configuration, and record there which they are and that they were found.

    Composed again, it gives the same run with fixed weights; and runs whose weights each run found for itself
    can be told from runs with weights that somebody chose.

    Args:
        config: changed in place.
        weights: by the configuration's key, such as ``distiller.terms.neck.object_weight``.
    """
    for key, weight in weights.items():
        OmegaConf.update(config, key, weight, force_add=True)
    OmegaConf.update(config, "distiller.balance", "balanced", force_add=True)
    OmegaConf.update(config, "distiller.balanced", list(weights), force_add=True)


def checkpoint_weights(config: DictConfig, checkpoint: Path) -> dict[str, float]:
    """Read the weights that a checkpoint was trained with, of the terms in ``config``, by their keys in it.

    Raises:
        ConfigError: the checkpoint does not say them all.
        WeightsError: it cannot be read.
    """
    now, before = _weights(config, checkpoint)
    lacking = [key for key in now if key not in before]
    if lacking:
        raise ConfigError(
            f"distiller.balance=gradient: a run that is resumed keeps its weights, and {checkpoint} does not "
            f"say what {', '.join(lacking)} was: leave balance out and set the weights"
        )
    return before


def changed_weights(config: DictConfig, checkpoint: Path) -> Iterator[str]:
    """Describe each weight in which ``config`` differs from what a checkpoint was trained with."""
    now, before = _weights(config, checkpoint)
    for key, weight in now.items():
        if key in before and before[key] != weight:
            yield f"{key} {before[key]:g} -> {weight:g}"


def _weights(config: DictConfig, checkpoint: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Read the weights in ``config`` and those in a checkpoint, by the keys of the terms in ``config``.

    So a checkpoint need not say which of its keys are weights.
    """
    now = to_plain(config.distiller)
    before = (read_weights(checkpoint).config or {}).get("distiller") or {}
    keys = weight_keys(now)
    return _values(now, keys), _values(before, keys)


def _values(distiller: Mapping[str, Any], keys: Sequence[WeightKey]) -> dict[str, float]:
    terms = distiller.get("terms") or {}
    return {
        str(key): terms[key.term][key.argument] for key in keys if key.argument in (terms.get(key.term) or {})
    }

"""The weights of the losses in a run's configuration: fixed after a balance, and kept by a resumed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from defeat.detectors import read_weights
from defeat.errors import ConfigError


def fix_weights(config: DictConfig, weights: Mapping[str, float]) -> None:
    """Put weights into a run's configuration, and say there that they come from a balance.

    Composed again, it gives the same run with fixed weights; and runs whose weights each run found for itself
    can be told from runs with weights that somebody chose.

    Args:
        weights: by the configuration's key, such as ``distiller.terms.neck.object_weight``.
    """
    for key, weight in weights.items():
        OmegaConf.update(config, key, weight, force_add=True)
    OmegaConf.update(config, "distiller.balance", "balanced", force_add=True)


def checkpoint_weights(config: DictConfig, checkpoint: Path) -> dict[str, float]:
    """The weights that a checkpoint was trained with, of the terms in ``config``, by their keys in it.

    Raises:
        ConfigError: the checkpoint does not say them all.
        WeightsError: it cannot be read.
    """
    before = _keyed((read_weights(checkpoint).config or {}).get("distiller"))
    wanted = _keyed(OmegaConf.to_container(config.distiller, resolve=True))
    lacking = [key for key in wanted if key not in before]
    if lacking:
        raise ConfigError(
            f"distiller.balance=gradient: a run that is resumed keeps its weights, and {checkpoint} does not "
            f"say what {', '.join(lacking)} was: leave balance out and set the weights"
        )
    return {key: before[key] for key in wanted}


def changed_weights(config: DictConfig, checkpoint: Path) -> Iterator[str]:
    """Describe each weight in which ``config`` differs from what a checkpoint was trained with."""
    before = _keyed((read_weights(checkpoint).config or {}).get("distiller"))
    for key, now in _keyed(OmegaConf.to_container(config.distiller, resolve=True)).items():
        if key in before and before[key] != now:
            yield f"{key} {before[key]:g} -> {now:g}"


def _keyed(distiller: Any) -> dict[str, float]:
    terms = (distiller or {}).get("terms") or {}
    return {
        f"distiller.terms.{name}.{key}": value
        for name, term in terms.items()
        for key, value in (term or {}).items()
        if key == "weight" or key.endswith("_weight")
    }

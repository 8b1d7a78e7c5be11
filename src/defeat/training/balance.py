"""Weights of a distiller's losses from a measurement, so that each has a chosen share of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from defeat.detectors import read_weights
from defeat.distill import Distiller
from defeat.errors import ConfigError
from defeat.training.measure import DETECTION, Measurement


def balanced_weights(distiller: Distiller, measured: Measurement) -> dict[str, float]:
    """The weights with which every loss has its share, ``distiller.shares``, by the loss's name.

    A loss's gradient is proportional to its weight: the new one is the old one times the share that is asked
    for over the share measured with fitted adapters. The norms are those at the maps that the loss acts
    through, over the levels that it compares. Rounded to 4 significant digits, to be written down.

    Raises:
        ConfigError: a loss, or the detection loss, has no gradient on the measured batches.
    """
    weights = {}
    for name, weight in distiller.weights.items():
        maps, strides = distiller.gradient_sites[name]
        own = measured.norm(measured.fitted[name], maps, strides)
        detection = measured.norm(measured.fitted[DETECTION], maps, strides)
        for loss, norm in ((name, own), ("the detection loss", detection)):
            if not 0 < norm < math.inf:
                raise ConfigError(
                    f"distiller.balance=gradient: {loss} has no gradient at the student's {maps} on the "
                    f"{measured.batches} measured batches (norm {norm:g}; no objects in them, or frozen or "
                    "equal features): raise measure.batches, or leave the loss out with "
                    f"{distiller.key(name)}=0"
                )
        weights[name] = float(f"{weight * distiller.shares[name] * detection / own:.4g}")
    return weights


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
    wanted = _keyed(OmegaConf.to_container(config.distiller))
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
    for key, now in _keyed(OmegaConf.to_container(config.distiller)).items():
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

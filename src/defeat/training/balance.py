"""Weights of a distiller's losses from a measurement, so that each has a chosen share of the gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from defeat.distill import Distiller
from defeat.errors import ConfigError
from defeat.training.loss_gradients import DETECTION, Measurement


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
                    "equal features): raise callbacks.measure.batches, or leave the loss out with "
                    f"{distiller.key(name)}=0"
                )
        weights[name] = float(f"{weight * distiller.shares[name] * detection / own:.4g}")
    return weights


def with_weights(config: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
    """Put weights into a run's configuration, and record there which they are and that they were found.

    Run again, it gives the same run with fixed weights; and runs whose weights each run found for itself can
    be told from runs with weights that somebody chose.

    Args:
        config: in plain containers.
        weights: by the configuration's key, such as ``distiller.terms.neck.object_weight``.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    found = {"distiller.balance": "balanced", "distiller.balanced": list(weights)}
    for key, value in {**weights, **found}.items():
        *path, last = key.split(".")
        node = changed
        for name in path:
            node = node[name]
        node[last] = value
    return changed

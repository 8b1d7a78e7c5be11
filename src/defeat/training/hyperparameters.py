"""The hyper-parameters by which the runs of a sweep are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defeat.distill import weight_keys
from defeat.io.text import printable

ALWAYS = (
    "seed",
    "data.batch_size",
    "optim.optimizer.lr",
    "optim.optimizer.weight_decay",
    "trainer.max_steps",
)
"""Keys of the configuration that every run has in the HParams table."""

TERMS = "distiller.terms."
"""The beginning of the keys of weights, which the table leaves out."""

DEFEAT_WEIGHTS = tuple(
    f"{TERMS}{term}.{region}_weight"
    for term in ("neck", "head", "backbone")
    for region in ("object", "background")
)
"""The weights of DeFeat's losses, which every run has there, too: 0 for a loss that it leaves out."""

OTHER_WEIGHTS = "other_weights"
"""One text for the weights of all other losses, whose names depend on the method."""

OF_A_PLACE = ("callbacks", "ckpt_path", "data.root", "hydra", "logger", "output_root", "preflight", "run_dir")
"""Beginnings of keys whose values are no hyper-parameters."""


def hyperparameters(
    flat: Mapping[str, Any], distiller: Mapping[str, Any] | None, words: Mapping[str, str | None]
) -> dict[str, float | str]:
    """Collect what the HParams table says of a run: the same names for every run of a sweep.

    Args:
        flat: the run's configuration, a value for each dotted key.
        distiller: its entry of that name.
        words: what the command line sets: keys, and groups of conf/ with their choices. Those of a sweep's
            jobs are the same.
    """
    weights = dict.fromkeys(DEFEAT_WEIGHTS, 0.0)
    others = []
    for key in map(str, weight_keys(distiller)):
        value = flat.get(key, 0.0)
        if key in weights:
            weights[key] = value
        else:
            others.append(f"{key.removeprefix(TERMS)}={value}")
    set_by_words = {
        key: flat.get(key, choice) for key, choice in words.items() if not key.startswith(OF_A_PLACE)
    }
    found = {
        **{key: flat.get(key) for key in ALWAYS},
        **weights,
        OTHER_WEIGHTS: " ".join(others) or None,
        **set_by_words,
    }
    return {key.removeprefix(TERMS): _plain(value) for key, value in found.items()}


def _plain(value: Any) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return "null" if value is None else printable(str(value))

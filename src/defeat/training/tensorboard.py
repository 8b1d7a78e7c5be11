"""What TensorBoard is told once a run: the charts of its custom scalars, and the row of its HParams table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from defeat.distill import weight_keys
from defeat.io.text import cut, printable
from defeat.training.module import DetectionModule, class_metric

Layout = dict[str, dict[str, list[Any]]]
"""Categories of charts, each with the regular expressions of its tags: that of ``add_custom_scalars``."""

LINES = 6
"""The most lines of a run that a chart has."""

METRICS = (*(f"val/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")), "train/loss_detection")
"""Scalars that the HParams table shows, by their tags: the last value of each."""

ALWAYS = (
    "seed",
    "data.batch_size",
    "optim.optimizer.lr",
    "optim.optimizer.weight_decay",
    "trainer.max_steps",
)
"""Keys of the configuration that every run has in the HParams table."""

DEFEAT_WEIGHTS = tuple(
    f"distiller.terms.{term}.{region}_weight"
    for term in ("neck", "head", "backbone")
    for region in ("object", "background")
)
"""The weights of DeFeat's losses, which every run has there, too: 0 for a loss that it leaves out."""

OF_A_PLACE = ("callbacks", "ckpt_path", "data.root", "hydra", "logger", "output_root", "preflight", "run_dir")
"""Beginnings of keys whose values are no hyper-parameters."""


def writers(trainer: Trainer) -> Iterator[Any]:
    """Yield the ``SummaryWriter`` of each TensorBoard logger of the first process; others have none."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                yield logger.experiment


def scalar_layout(module: DetectionModule) -> Layout:
    """Arrange the charts of a run's custom scalars.

    TensorBoard puts the layouts of several runs together by the categories' titles and leaves out a chart
    that is there already. A chart's title and tags are therefore the same in every run that has it, and a run
    has the charts that it has tags for.

    Args:
        module: the run's, with its distiller if it has one.
    """
    layout = {
        "Detection losses": {
            "by part": r"^train/(?!loss$|loss_detection$|images_per_s$|skipped_steps$)",
            "in all: loss_detection; loss has the distiller's, too": "^train/(loss|loss_detection)$",
        },
        **_distillation(module),
        "AP": {
            "IoU 0.50 to 0.95, 0.50, 0.75": r"^val/AP(50|75|_raw)?$",
            "by size: small, medium, large": r"^val/AP[sml]$",
            "recall by size, and of all": r"^val/AR(100|[sml])$",
        },
        "AP by class": _classes(module.classes),
        "Rates and speed": {"learning rate": "^lr-", "images per second": "^train/images_per_s$"},
    }
    return {
        category: {title: ["Multiline", [tags]] for title, tags in charts.items()}
        for category, charts in layout.items()
    }


def _distillation(module: DetectionModule) -> dict[str, dict[str, str]]:
    if module.distiller is None:
        return {}
    losses = list(module.distiller.weights)
    regions = {
        "object regions": ("_object$", [name for name in losses if name.endswith("_object")]),
        "background regions": ("_background$", [name for name in losses if name.endswith("_background")]),
    }
    rest = [name for name in losses if not name.endswith(("_object", "_background"))]
    present = {title: end for title, (end, names) in regions.items() if names}
    present |= {"whole maps": "(?<!_object)(?<!_background)$"} if rest else {}
    return {
        "Distillation by region": {title: f"^distill/.*{end}" for title, end in present.items()},
        "Distillation by level": {
            name: f"^distill_level/{re.escape(name)}_stride_" for name in module.distiller.with_levels
        },
        "Gradient at the start, over the detection loss's": {
            title: f"^gradient_share/.*{end}" for title, end in present.items()
        },
    }


def _classes(names: Sequence[str]) -> dict[str, str]:
    """Make charts of :data:`LINES` classes each."""
    charts = {}
    for first in range(0, len(names), LINES):
        some = names[first : first + LINES]
        tags = "|".join(re.escape(class_metric(name)) for name in some)
        named = cut(printable(", ".join(some)), 60)
        charts[f"{first + 1} to {first + len(some)}: {named}"] = f"^({tags})$"
    return charts


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
    weights |= {str(key): flat.get(str(key), 0.0) for key in weight_keys(distiller)}
    set_by_words = {
        key: flat.get(key, choice) for key, choice in words.items() if not key.startswith(OF_A_PLACE)
    }
    found = {**{key: flat.get(key) for key in ALWAYS}, **weights, **set_by_words}
    return {key.removeprefix("distiller.terms."): _plain(value) for key, value in found.items()}


def _plain(value: Any) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return "null" if value is None else printable(str(value))

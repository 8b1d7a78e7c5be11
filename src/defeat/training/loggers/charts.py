"""The charts that a run's scalars are arranged in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from defeat.io.text import cut, printable
from defeat.training.metric_names import class_metric
from defeat.training.module import DetectionModule

Layout = dict[str, dict[str, list[Any]]]
"""Categories of charts, each with the regular expressions of its tags: that of ``add_custom_scalars``."""

LINES = 6
"""The most lines of a run that a chart has."""


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

"""The result of an evaluation, and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 COCO figures in the order of https://cocodataset.org/#detection-eval."""

VOC_KEYS = ("AP50_11point", "AP50_allpoint")
"""Pascal VOC mean AP at IoU 0.5, by the rule of VOC2007 and by that of VOC2010."""


class Evaluation(NamedTuple):
    """The figures of one detector on one data set, all in [0, 1]; nan where there was nothing to measure."""

    coco: dict[str, float]
    """:data:`COCO_KEYS` to figure."""
    per_class: dict[str, float]
    """Class name to COCO AP, in the order of the data set's classes; nan for a class without ground truth."""
    voc: dict[str, float]
    """:data:`VOC_KEYS` to figure."""
    images: int
    """Number of different images that were evaluated."""

    def to_json(self) -> dict[str, Any]:
        """Return a dict for :func:`json.dumps`; JSON has no nan, so it becomes null."""
        groups = {name: _nan_to_none(getattr(self, name)) for name in ("coco", "per_class", "voc")}
        return {**groups, "images": self.images}


def _nan_to_none(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(figure) else figure for name, figure in figures.items()}

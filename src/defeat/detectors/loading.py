"""Weights into detectors, by name and shape, with an account of what fitted.

Class names decide over the classification head, see ``class_order.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import overwrite_eps

from defeat.detectors.class_order import OTHER_CLASSES, difference, is_head, order, reorder
from defeat.detectors.state_dict_keys import adapt_to_model
from defeat.detectors.weights import WeightFile, read_weights
from defeat.errors import WeightsError
from defeat.io.text import few

ZERO_EPS = (
    "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
    "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1",
    "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
    "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
)
"""Weights that torchvision trained with frozen norms without epsilon, which its own builders see to."""


class LoadReport(NamedTuple):
    """The keys of a source that went into a model, and those that did not."""

    source: str
    matched: list[str]
    missing: list[str]
    """In the model, not in the source: left as initialised."""
    unexpected: list[str]
    """In the source, not in the model: unused."""
    mismatched: list[str]
    """In both with different shapes: left as initialised."""
    note: str = ""
    """A note on what was done to the classification head."""

    def __str__(self) -> str:
        counts = ", ".join(
            f"{len(keys)} {name}" + (f" ({few(keys)})" if keys else "")
            for name, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("mismatched", self.mismatched),
            )
        )
        note = f", {self.note}" if self.note else ""
        return f"{self.source}: {len(self.matched)} keys matched, {counts}{note}"


def load_detector_weights(
    detector: nn.Module,
    source: str | Path | WeightFile,
    *,
    classes: Sequence[str] | None = None,
    new_head: bool = False,
    download: bool = False,
    ema: bool | None = None,
) -> tuple[LoadReport, WeightFile]:
    """Fill a whole detector, or leave it as it is where that cannot be.

    Where the source names its classes and they are ``classes`` in another order, or among outputs that stand
    for nothing, the head's outputs are selected by name.

    Args:
        detector: filled in place.
        source: see :func:`~defeat.detectors.weights.read_weights`, or a file that it has read.
        classes: K class names of the detector without background, in its order; None to compare no names.
        new_head: accept a source of other classes, and leave the classification head as initialised then.
        download: see there.
        ema: see there.

    Raises:
        WeightsError: unreadable source, other classes, or a detector that would not be fully loaded.
    """
    if isinstance(source, WeightFile):
        file, name = source, source.source
    else:
        file, name = read_weights(source, download=download, ema=ema), str(source)
    tensors = adapt_to_model(file.tensors, detector, name)
    _check_model(_compare(detector, tensors, name), new_head)
    note = ""
    if classes is not None and file.outputs is not None:
        tensors, note = _fit_classes(tensors, file.outputs, classes, name, new_head)
    report = _compare(detector, tensors, name, note)
    if report.mismatched and not new_head:  # of the head alone, or it would have been another model
        raise WeightsError(f"{report}. The classification head has another class count. {OTHER_CLASSES}")
    _copy(detector, tensors, report)
    if file.enum in ZERO_EPS:
        overwrite_eps(detector, 0.0)
    return report, file


def _check_model(report: LoadReport, new_head: bool) -> None:
    """Refuse what is not of this network, whatever its classes are."""
    foreign = [key for key in (*report.missing, *report.mismatched) if not is_head(key)]
    if foreign or (report.missing and not new_head):
        raise WeightsError(f"{report}. These weights are of another model: check the detector's settings")


def _fit_classes(
    tensors: dict[str, Tensor], outputs: Sequence[str], classes: Sequence[str], source: str, new_head: bool
) -> tuple[dict[str, Tensor], str]:
    """Make a source's head mean the detector's classes; its tensors and what was done to them."""
    rows = order(outputs, classes, source)
    if rows is None:
        if not new_head:
            raise WeightsError(
                f"{source} was trained on other classes ({difference(outputs, classes)}). {OTHER_CLASSES}"
            )
        others = {key: value for key, value in tensors.items() if not is_head(key)}
        return others, "of other classes, so the classification head stays as initialised"
    if rows == list(range(len(outputs))):
        return tensors, ""
    note = f"classes remapped by name ({len(rows)} of {len(outputs)} outputs)"
    return reorder(tensors, rows, len(outputs), source), note


def load_backbone_weights(
    detector: nn.Module, source: str | Path, *, download: bool = False, ema: bool | None = None
) -> LoadReport:
    """Fill ``detector.backbone.body`` from a classifier's weights; the classifier's own layers stay unused.

    Args:
        detector: filled in place.
        source: see :func:`~defeat.detectors.weights.read_weights`.
        download: see there.
        ema: see there.

    Raises:
        WeightsError: unreadable source, or a backbone that would not be fully loaded.
    """
    tensors = read_weights(source, download=download, ema=ema).tensors
    body = detector.get_submodule("backbone.body")
    tensors = {re.sub(r"\bfeatures\.", "", name): value for name, value in tensors.items()}  # of a MobileNet
    tensors = adapt_to_model(tensors, body, str(source))
    report = _compare(body, tensors, str(source))
    if report.missing or report.mismatched:
        raise WeightsError(f"{report}. These weights are of another backbone: check `backbone`")
    _copy(body, tensors, report)
    return report


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], source: str, note: str = "") -> LoadReport:
    """Compare the tensors with a model's by name and shape."""
    own = model.state_dict()
    return LoadReport(
        source,
        matched=[k for k, v in own.items() if k in tensors and tensors[k].shape == v.shape],
        # A counter that only BatchNorm with momentum=None reads; frozen norms have none.
        missing=[k for k in own if k not in tensors and not k.endswith("num_batches_tracked")],
        unexpected=[k for k in tensors if k not in own and not k.endswith("num_batches_tracked")],
        mismatched=[k for k, v in own.items() if k in tensors and tensors[k].shape != v.shape],
        note=note,
    )


@torch.no_grad()
def _copy(model: nn.Module, tensors: Mapping[str, Tensor], report: LoadReport) -> None:
    own = model.state_dict()
    for key in report.matched:
        own[key].copy_(tensors[key])

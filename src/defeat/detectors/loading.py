"""Weights into detectors, by name and shape, with an account of what fitted.

Class names decide over the classification head, see ``class_order.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.detection._utils import overwrite_eps

from defeat.detectors.class_order import OTHER_CLASSES, ClassMap, is_head
from defeat.detectors.fit_head import Head, fit_head, number_outputs
from defeat.detectors.marginal import include_in_background
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
    unknown: tuple[str, ...] = ()
    """Classes of a teacher that its source does not know."""
    new: tuple[str, ...] = ()
    """Classes whose outputs are new (``new_head``), in a head that knows others; its keys are matched."""

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
    teacher: bool = False,
    class_map: ClassMap | None = None,
) -> tuple[LoadReport, WeightFile]:
    """Fill a whole detector, or leave it as it is where that cannot be.

    Where the source names its classes and they are ``classes`` in another order, or among outputs that stand
    for nothing, the head's outputs are selected by name. A teacher's may be further classes, or lack some.

    Args:
        detector: filled in place.
        source: see :func:`~defeat.detectors.weights.read_weights`, or a file that it has read.
        classes: K class names of the detector without background, in its order; None to compare no names.
        new_head: accept a source of other classes. The outputs of classes that it knows by name, and of the
            background, are taken then, and the others are left as initialised; all of them, where it knows
            none.
        download: see there.
        ema: see there.
        teacher: take the outputs of the classes that the source knows, if it knows any. The softmax of a
            Faster R-CNN becomes the marginal one, see :class:`~defeat.detectors.marginal.MarginalLinear`;
            classes that the source does not know are never found.
        class_map: see :func:`~defeat.detectors.class_order.select_outputs`.

    Raises:
        WeightsError: unreadable source, other classes, or a detector that would not be fully loaded.
    """
    if isinstance(source, WeightFile):
        file, name = source, source.source
    else:
        file, name = read_weights(source, download=download, ema=ema), str(source)
    tensors = adapt_to_model(file.tensors, detector, name)
    _check_model(_compare(detector, tensors, name), new_head)
    outputs = file.outputs
    if classes is not None and outputs is None and class_map:
        outputs = number_outputs(detector, tensors, classes)
    head = Head(tensors)
    if classes is not None and outputs is not None:
        head = fit_head(
            tensors,
            outputs,
            classes,
            name,
            new_head=detector.state_dict() if new_head else None,
            teacher=teacher,
            class_map=class_map,
        )
    report = _compare(detector, head.tensors, name, head.note)
    report = report._replace(unknown=head.unknown, new=head.new)
    if report.mismatched and not new_head:  # of the head alone, or it would have been another model
        hint = "; or say which output is which class, teacher.class_map={NAME: NUMBER}" if teacher else ""
        raise WeightsError(
            f"{report}. The classification head has another class count. {OTHER_CLASSES}{hint}"
        )
    _copy(detector, head.tensors, report)
    if head.left_out:
        include_in_background(detector, tensors, head.left_out)
    if file.enum in ZERO_EPS or _began_without_epsilon(file):
        overwrite_eps(detector, 0.0)
    return report, file


def _began_without_epsilon(file: WeightFile) -> bool:
    """Whether a checkpoint is of a training that began with :data:`ZERO_EPS`, so that it has no epsilon."""
    student = (file.config or {}).get("student")
    weights = student.get("weights") if isinstance(student, dict) else None
    if not isinstance(weights, str):
        return False
    names = {name: get_weight(name) for name in ZERO_EPS}
    shipped = {Path(urlparse(enum.url).path).name for enum in names.values()}
    default = {f"{type(enum).__name__}.DEFAULT" for enum in names.values() if type(enum).DEFAULT is enum}
    return weights in names or weights in default or Path(weights).name in shipped


def _check_model(report: LoadReport, new_head: bool) -> None:
    """Refuse what is not of this network, whatever its classes are."""
    foreign = [key for key in (*report.missing, *report.mismatched) if not is_head(key)]
    if foreign or (report.missing and not new_head):
        raise WeightsError(f"{report}. These weights are of another model: check the detector's settings")


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

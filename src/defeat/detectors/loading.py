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

from defeat.detectors.class_order import (
    OTHER_CLASSES,
    UNUSED,
    ClassMap,
    difference,
    is_head,
    order,
    reorder,
    select_outputs,
)
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
        outputs = _numbered_outputs(detector, tensors, classes)
    head = _Head(tensors)
    if classes is not None and outputs is not None:
        head = _fit_classes(
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


def _numbered_outputs(
    detector: nn.Module, tensors: Mapping[str, Tensor], classes: Sequence[str]
) -> tuple[str, ...] | None:
    """Name the outputs of a source that does not name its classes by their numbers."""
    own = detector.state_dict()
    key = next((key for key in own if is_head(key) and key in tensors), None)
    if key is None:
        return None
    values = len(own[key]) // (len(classes) + 1)  # of each output
    return tuple(map(str, range(len(tensors[key]) // values)))


class _Head(NamedTuple):
    """The tensors of a source whose classification head means the detector's classes."""

    tensors: dict[str, Tensor]
    note: str = ""
    """Says what was done to the head."""
    unknown: tuple[str, ...] = ()
    """Classes of the detector that the source lacks."""
    left_out: tuple[int, ...] = ()
    """Outputs of the source that stand for classes which the detector has as background."""
    new: tuple[str, ...] = ()
    """Classes of the detector whose outputs are its own."""


def _fit_classes(
    tensors: dict[str, Tensor],
    outputs: Sequence[str],
    classes: Sequence[str],
    source: str,
    *,
    new_head: Mapping[str, Tensor] | None,
    teacher: bool,
    class_map: ClassMap | None,
) -> _Head:
    """Make a source's head mean the detector's classes; ``new_head`` has the outputs of new classes."""
    rows = None if class_map else order(outputs, classes, source)
    if rows == list(range(len(outputs))):
        return _Head(tensors)
    if rows is not None:
        note = f"classes remapped by name ({len(rows)} of {len(outputs)} outputs)"
        return _Head(reorder(tensors, rows, len(outputs), source), note)
    if teacher or class_map:
        head = _select_classes(tensors, outputs, classes, source, class_map)
        known = len(classes) - len(head.unknown)
        if known and (teacher or not (head.unknown or head.left_out)):
            return head
    if new_head is None:
        raise WeightsError(
            f"{source} was trained on other classes ({difference(outputs, classes)}). {OTHER_CLASSES}"
            + ("; or, if some are called otherwise, teacher.class_map={NAME: NAME_THERE}" if teacher else "")
        )
    selected = select_outputs(outputs, classes, source, class_map)
    new = tuple(name for name, row in zip(classes, selected[1:], strict=True) if row is None)
    if len(new) == len(classes) or not any(map(is_head, tensors)):
        others = {key: value for key, value in tensors.items() if not is_head(key)}
        return _Head(others, "of other classes, so the classification head stays as initialised")
    note = f"outputs of {len(classes) - len(new)} of {len(classes)} classes taken by name"
    note += f", new ones for {few([*map(repr, new)], 4)}" if new else ""
    return _Head(reorder(tensors, selected, len(outputs), source, new_head), note, new=new)


def _select_classes(
    tensors: dict[str, Tensor],
    outputs: Sequence[str],
    classes: Sequence[str],
    source: str,
    class_map: ClassMap | None,
) -> _Head:
    """Take the outputs of those classes that the source knows."""
    rows = select_outputs(outputs, classes, source, class_map)
    unknown = tuple(name for name, row in zip(classes, rows[1:], strict=True) if row is None)
    left_out = tuple(sorted(set(range(len(outputs))) - set(rows)))
    if all(outputs[i] == UNUSED for i in left_out):  # their share was learnt to be none
        left_out = ()
    if left_out and any(".module_list." in key for key in tensors if is_head(key)):
        raise WeightsError(
            f"{source} is an SSD of other classes ({difference(outputs, classes)}), whose softmax cannot be "
            "taken apart: take a detector of another family"
        )
    known = len(classes) - len(unknown)
    note = f"classes selected by name ({known} of {len(classes)} are among its {len(outputs)} outputs)"
    return _Head(reorder(tensors, rows, len(outputs), source), note, unknown, left_out)


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

"""The classification head of a source of weights, made to mean the classes of a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

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
from defeat.errors import WeightsError
from defeat.io.text import few


def number_outputs(
    detector: nn.Module, tensors: Mapping[str, Tensor], classes: Sequence[str]
) -> tuple[str, ...] | None:
    """Name the outputs of a source that does not name its classes by their numbers; None without a head.

    Args:
        detector: of ``classes``.
        tensors: of the source, by the detector's names.
        classes: K names without background.
    """
    own = detector.state_dict()
    key = next((key for key in own if is_head(key) and key in tensors), None)
    if key is None:
        return None
    values = len(own[key]) // (len(classes) + 1)  # of each output
    return tuple(map(str, range(len(tensors[key]) // values)))


class Head(NamedTuple):
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


def fit_head(
    tensors: dict[str, Tensor],
    outputs: Sequence[str],
    classes: Sequence[str],
    source: str,
    *,
    new_head: Mapping[str, Tensor] | None,
    teacher: bool,
    class_map: ClassMap | None,
) -> Head:
    """Make a source's classification head mean the detector's classes.

    Args:
        tensors: of the source, by the detector's names.
        outputs: what each output of the source stands for, background first.
        classes: K names of the detector's classes, without background.
        source: for messages.
        new_head: tensors of the detector, from which the outputs of classes come that the source lacks; None
            to refuse these.
        teacher: see :func:`~defeat.detectors.loading.load_detector_weights`.
        class_map: see :func:`~defeat.detectors.class_order.select_outputs`.

    Raises:
        WeightsError: other classes, or a head that cannot be put in order.
    """
    rows = None if class_map else order(outputs, classes, source)
    if rows == list(range(len(outputs))):
        return Head(tensors)
    if rows is not None:
        note = f"classes remapped by name ({len(rows)} of {len(outputs)} outputs)"
        return Head(reorder(tensors, rows, len(outputs), source), note)
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
        return Head(others, "of other classes, so the classification head stays as initialised")
    note = f"outputs of {len(classes) - len(new)} of {len(classes)} classes taken by name"
    note += f", new ones for {few([*map(repr, new)], 4)}" if new else ""
    return Head(reorder(tensors, selected, len(outputs), source, new_head), note, new=new)


def _select_classes(
    tensors: dict[str, Tensor],
    outputs: Sequence[str],
    classes: Sequence[str],
    source: str,
    class_map: ClassMap | None,
) -> Head:
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
    return Head(reorder(tensors, rows, len(outputs), source), note, unknown, left_out)

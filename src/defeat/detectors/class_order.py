"""Classification heads put into another order of classes, by name.

A detector whose classes merely stand in another order computes the same thing: its outputs are the rows of a
few tensors, and those can be selected. A teacher may know further classes, or lack some: see
:func:`select_outputs` and ``marginal.py``. Everything here works on tensors, before they go into a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import yaml  # type: ignore[import-untyped]
from torch import Tensor

from defeat.errors import WeightsError
from defeat.io.text import few

BACKGROUND = "__background__"

UNUSED = "N/A"
"""The name that torchvision gives to COCO's 10 ids that stand for nothing."""

SILENT_LOGIT = -1.0e4
"""The logit of a class that a detector does not know: a score of 0, and finite in half precision."""

ClassMap = Mapping[str, str | int]
"""The output of a source that stands for a class of the detector, by its name or its number."""

HEADS = {
    r"roi_heads\.box_predictor\.cls_score\.(weight|bias)": 1,
    r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)": 4,  # the four sides of class 0, of class 1, ...
    r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)": 1,
    # One-stage heads: all classes of anchor 0, of anchor 1, ...
    r"head\.classification_head\.cls_logits\.(weight|bias)": 1,  # RetinaNet, FCOS
    r"head\.classification_head\.module_list\.\d+\.(1\.)?(weight|bias)": 1,  # SSD, SSDlite
}
"""Parameters of torchvision's detectors whose length follows from the number of classes, and how many values
in a row each class has."""

OTHER_CLASSES = (
    "Use data of its classes, or, to train from these weights with a new head, set new_head=true beside them"
)
"""True of a teacher, of a student's start and of an evaluation alike."""


def is_head(key: str) -> bool:
    """Tell whether a parameter's length follows from the number of classes."""
    return any(re.fullmatch(pattern, key) for pattern in HEADS)


def order(outputs: Sequence[str], classes: Sequence[str], source: str) -> list[int] | None:
    """Say for each output of a detector of ``classes`` which output of a source stands for it.

    Args:
        outputs: name of every output of the source, background first; unused ones are called ``N/A``.
        classes: K names without background.
        source: for messages.

    Returns:
        K + 1 positions in ``outputs``, or None where the sets of names differ.

    Raises:
        WeightsError: a name stands for two outputs, and the order differs.
    """
    if list(outputs[1:]) == list(classes):
        return list(range(len(outputs)))
    at = _meant(outputs, classes)
    names = [outputs[i] for i in at]
    if set(names) != set(classes):
        return None
    twice = [name for name, count in (Counter(names) | Counter(classes)).items() if count > 1]
    if twice:
        raise WeightsError(f"{source}: the class name {twice[0]!r} stands twice, so the order cannot be told")
    where = dict(zip(names, at, strict=True))
    return [0, *(where[name] for name in classes)]


def _meant(outputs: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Positions of the outputs that stand for a class."""
    nothing = {UNUSED, BACKGROUND} - set(classes)
    return [i for i, name in enumerate(outputs) if i and name not in nothing]


def read_class_map(text: str) -> ClassMap:
    """Read a map that is written as text, ``{'traffic light': 'stop sign', münze: 3}``, in YAML or JSON.

    A command line gives it so where Hydra's grammar does not take the names as keys.

    Raises:
        WeightsError: it is none.
    """
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        read = None
    if not isinstance(read, dict):
        raise WeightsError(f"class_map={text} is no map: write {{'name here': 'name or number there'}}")
    return {str(name): output for name, output in read.items()}


def select_outputs(
    outputs: Sequence[str], classes: Sequence[str], source: str, class_map: ClassMap | None = None
) -> list[int | None]:
    """Say for each output of a detector of ``classes`` which output of a source stands for it, if one does.

    Args:
        outputs: name of every output of the source, background first.
        classes: K names without background.
        source: for messages.
        class_map: for classes that the source calls otherwise: name of the class to name or number of the
            output.

    Returns:
        K + 1 positions in ``outputs``, that of the background first; None for a class that the source lacks.

    Raises:
        WeightsError: ``class_map`` names a class or an output that there is not, or one output would stand
            for two classes, or two outputs for one.
    """
    class_map = class_map or {}
    known = _meant(outputs, classes)
    for name, output in class_map.items():
        if name not in classes:
            raise WeightsError(
                f"class_map: the data have no class {name!r}, only {few([*map(repr, classes)])}"
            )
        if output not in known and output not in outputs[1:]:
            raise WeightsError(
                f"class_map: {source} has no output {output!r} for {name!r}, only "
                f"{few([repr(outputs[i]) for i in known])}, or a number from 1 to {len(outputs) - 1}"
            )
    rows = [_find_output(class_map.get(name, name), outputs, known, source) for name in classes]
    twice = [outputs[row] for row, count in Counter(rows).items() if row is not None and count > 1]
    if twice:
        raise WeightsError(f"class_map: the output {twice[0]!r} of {source} would stand for two classes")
    return [0, *rows]


def _find_output(wanted: str | int, outputs: Sequence[str], known: Sequence[int], source: str) -> int | None:
    if isinstance(wanted, int):
        return wanted
    rows = [i for i in known if outputs[i] == wanted]
    if len(rows) > 1:
        raise WeightsError(f"{source}: the class name {wanted!r} stands twice; give its number in class_map")
    return rows[0] if rows else None


def difference(outputs: Sequence[str], classes: Sequence[str]) -> str:
    """Name a few of those names on each side that the other side lacks."""
    theirs = [outputs[i] for i in _meant(outputs, classes)]
    sides = (
        ("only there", [name for name in theirs if name not in classes]),
        ("only here", [name for name in classes if name not in theirs]),
    )
    return "; ".join(f"{side}: {few([*map(repr, names)], 4)}" for side, names in sides if names)


def reorder(
    tensors: Mapping[str, Tensor],
    rows: Sequence[int | None],
    outputs: int,
    source: str,
    new: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Select and permute the outputs of a head, so that output i is what output ``rows[i]`` was.

    An output that is left out of a softmax head no longer takes part in its sum: where it stood for nothing,
    as torchvision's ``N/A`` do, its share was learnt to be none.

    Args:
        tensors: of a whole detector.
        rows: of the new head, as :func:`order` or :func:`select_outputs` gives them; an output of None has
            weights of 0 and, where it is a class score, :data:`SILENT_LOGIT`.
        outputs: of the present one.
        source: for messages.
        new: a head of the new size, whose outputs are taken for those of None.

    Raises:
        WeightsError: no head that is known here, or one of another number of outputs.
    """
    heads = [key for key in tensors if is_head(key)]
    if not heads:
        raise WeightsError(
            f"{source} has its classes in another order, and a head that is none of torchvision's: "
            "give the data's classes in the order of these weights, +data.classes=[...]"
        )
    heads_of = new or {}
    return {
        **tensors,
        **{key: _rows(key, tensors[key], rows, outputs, source, heads_of.get(key)) for key in heads},
    }


def _rows(
    key: str, tensor: Tensor, rows: Sequence[int | None], outputs: int, source: str, new: Tensor | None
) -> Tensor:
    values = next(values for pattern, values in HEADS.items() if re.fullmatch(pattern, key))
    if len(tensor) % (outputs * values):
        raise WeightsError(
            f"{source} names {outputs} classes with background, but {key} has {len(tensor)} rows"
        )
    blocks: Tensor = tensor.unflatten(0, (-1, outputs, values))
    selected = blocks[:, [row or 0 for row in rows]]
    scores = key.endswith("bias") and not re.search(r"bbox_pred|mask_fcn_logits", key)
    absent = [i for i, row in enumerate(rows) if row is None]
    selected[:, absent] = SILENT_LOGIT if scores else 0.0
    if new is not None and new.shape == selected.flatten(0, 2).shape:
        selected[:, absent] = new.unflatten(0, (-1, len(rows), values))[:, absent].to(selected)
    return selected.flatten(0, 2)

"""The figures of a student that are known without computing them again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from defeat.detectors.weights import sha256
from defeat.errors import ConfigError, DataError
from defeat.evaluation import COCO_KEYS, Detections, read_detections
from defeat.evaluation.confusion import confusion_matrix
from defeat.evaluation.detections import DETECTIONS_FILE
from defeat.evaluation.matching import Integers
from defeat.evaluation.metrics import evaluate_images
from defeat.export.student import TrainedStudent
from defeat.io.safe_read import is_file, load_json
from defeat.io.text import few, quote
from defeat.training.curves import Curves
from defeat.training.metric_names import class_metric


class Figures(NamedTuple):
    """COCO figures of a student and where they come from; all in [0, 1], nan where there was no object."""

    coco: dict[str, float]
    """The 12 keys of COCO to figure."""
    per_class: dict[str, float]
    """Class name to AP."""
    source: str
    """A phrase that says who found them on what."""
    confusion: Integers | None = None
    """See :func:`~defeat.evaluation.confusion.confusion_matrix`; None where it is not known."""


def read_figures(student: TrainedStudent, evaluation: str | Path | None) -> Figures | None:
    """Read ``evaluation.json`` of ``defeat-eval``, or what the training itself found in its validation.

    Args:
        student: of the checkpoint.
        evaluation: the path of ``evaluation.json``; None for the figures that the checkpoint holds.

    Returns:
        None where there was no validation at the step of the checkpoint, or none of these weights.

    Raises:
        ConfigError: the file is of another checkpoint.
        DataError: the file cannot be read, or holds no figures.
    """
    if evaluation is not None:
        return _of_evaluation(student, Path(evaluation).expanduser())
    if student.averaged is False:  # validations are of the averaged weights
        return None
    row, detections = _logged(student), _filed(student)
    source = f"the training's own validation after {student.record.get('global_step')} steps"
    confusion = None
    if detections is not None:
        images = list(detections.images.values())
        confusion = confusion_matrix(images, len(student.classes))
        if row is None:
            found = evaluate_images(images, student.classes, max_dets=detections.max_dets)
            return Figures(found.coco, found.per_class, source, confusion)
    if row is None:
        return None
    per_class = {name: row.get(class_metric(name), math.nan) for name in student.classes}
    return Figures({key: row[f"val/{key}"] for key in COCO_KEYS}, per_class, source, confusion)


def _logged(student: TrainedStudent) -> dict[str, float] | None:
    """The figures that were logged at the step of the checkpoint, which holds the curves of all loggers."""
    curves, step = student.record.get("curves"), student.record.get("global_step")
    if not isinstance(curves, dict) or not isinstance(step, int):
        return None
    # the loggers count the steps from 0
    rows = (row for at, row in Curves.from_plain(curves) if at == step - 1 and "val/AP" in row)
    row = next(rows, None)
    return row if row and all(f"val/{key}" in row for key in COCO_KEYS) else None


def _filed(student: TrainedStudent) -> Detections | None:
    """The detections that the run has filed, if they are of the step of the checkpoint."""
    try:
        detections = read_detections(student.source.parent.parent / DETECTIONS_FILE)
    except DataError:
        return None
    same = detections.step == student.record.get("global_step") and detections.classes == student.classes
    return detections if same and detections.images else None


def _of_evaluation(student: TrainedStudent, path: Path) -> Figures:
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"evaluation={path}: cannot be read ({error})") from error
    groups = [content.get(key) for key in ("coco", "per_class")] if isinstance(content, dict) else [None]
    if not all(isinstance(group, dict) for group in groups) or set(groups[0] or ()) != set(COCO_KEYS):
        raise DataError(f"evaluation={path}: not an evaluation.json of defeat-eval")
    _check_same(student, path, content)
    coco, per_class = map(_numbers, groups)
    if set(per_class) != set(student.classes):
        raise ConfigError(
            f"evaluation={path} is of other classes ({few(list(per_class))}) than {student.source}"
        )
    where = f"{content.get('images')} images of the {content.get('split')} split"
    return Figures(coco, per_class, f"defeat-eval on {where}")


def _check_same(student: TrainedStudent, path: Path, content: Mapping[str, Any]) -> None:
    evaluated = Path(str(content.get("source")))
    if is_file(evaluated) and sha256(evaluated) != student.sha256:
        raise ConfigError(
            f"evaluation={path} is of another checkpoint ({quote(str(evaluated), 200)}) than "
            f"{student.source}: give that of the same file"
        )


def _numbers(group: Mapping[str, Any] | None) -> dict[str, float]:
    return {str(key): math.nan if value is None else float(value) for key, value in (group or {}).items()}

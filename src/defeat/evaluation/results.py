"""Detections as a COCO results file (https://cocodataset.org/#format-results), written, read and evaluated.

The file is a list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` with the ids of
the data set, which for Pascal VOC are strings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defeat.data.fields import is_finite
from defeat.errors import DataError
from defeat.evaluation.coco_metrics import DEFAULT_BACKEND, DEFAULT_MAX_DETS, check_backend, check_max_dets
from defeat.evaluation.evaluation import Evaluation
from defeat.evaluation.image_result import to_image_result
from defeat.evaluation.metrics import evaluate_images
from defeat.io.safe_read import load_json
from defeat.io.text import one_line, quote
from defeat.types import Annotations, Prediction, Record, Target


def write_results(path: Path, annotations: Annotations, predictions: Mapping[int, Prediction]) -> None:
    """Write detections to a results file; reading it again gives exactly the same numbers.

    Args:
        path: file to write; missing folders are made.
        annotations: the data set whose ids to write.
        predictions: position in ``annotations.records`` to the detections of that image.

    Raises:
        IndexError: a position or a label is outside the data set.
    """
    entries = [
        entry
        for index, prediction in sorted(predictions.items())
        for entry in _entries(annotations.records[index].image_id, annotations.class_ids, prediction)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")


def read_results(path: Path, annotations: Annotations) -> list[Prediction]:
    """Read a results file.

    Boxes and scores are float64 here, as in the file: rounded to float32, unequal scores could become equal
    and change their order.

    Returns:
        The detections of each of ``annotations.records``, best first; none for an image the file leaves out.

    Raises:
        DataError: the file cannot be read or an entry is wrong; the message names file and entry.
    """
    position = {record.image_id: index for index, record in enumerate(annotations.records)}
    label = {class_id: index for index, class_id in enumerate(annotations.class_ids, start=1)}
    detections: list[list[_Detection]] = [[] for _ in annotations.records]
    for number, entry in enumerate(_read_list(path)):
        try:
            detections[_image(entry, position, annotations)].append(_detection(entry, label, annotations))
        except DataError as error:
            raise DataError(one_line(f"{path}: entry {number}: {error}")) from None
    return [_prediction(of_image) for of_image in detections]


def evaluate_results(
    annotations: Annotations, path: Path, backend: str = DEFAULT_BACKEND, max_dets: int = DEFAULT_MAX_DETS
) -> Evaluation:
    """Compute the metrics of a results file, as pycocotools would from the same two files.

    Args:
        annotations: the data set that the file is about.
        path: the results file.
        backend: engine of the COCO metrics, see :class:`defeat.evaluation.DetectionMetrics`.
        max_dets: detections that count for them, of an image and class.

    Raises:
        ConfigError: there is no such engine, or ``max_dets`` is below 10.
        DataError: see :func:`read_results`.
    """
    engine, most = check_backend(backend), check_max_dets(max_dets)
    predictions = read_results(path, annotations)
    images = [
        (record.image_id, to_image_result(predictions[index], _target(record, index)))
        for index, record in enumerate(annotations.records)
    ]
    # pycocotools goes by image id, which decides between detections of equal score in different images.
    images.sort(key=lambda image: (isinstance(image[0], str), image[0]))
    return evaluate_images([image for _, image in images], annotations.classes, engine, most)


class _Detection(NamedTuple):
    box: list[float]  # xyxy
    score: float
    label: int


def _entries(
    image_id: int | str, class_ids: tuple[int, ...], prediction: Prediction
) -> Iterator[dict[str, Any]]:
    # In float64 the width of a float32 box is exact, so that x + width is x2 again.
    boxes = _doubles(prediction["boxes"]).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    scores, labels = _doubles(prediction["scores"]), prediction["labels"].cpu()
    for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
        if not 1 <= label <= len(class_ids):
            raise IndexError(f"image {image_id!r}: label {label} is not in 1..{len(class_ids)}")
        yield {"image_id": image_id, "category_id": class_ids[label - 1], "bbox": box, "score": score}


def _doubles(values: Tensor) -> Tensor:
    return values.detach().cpu().double()  # first to the CPU: not every accelerator has float64


def _read_list(path: Path) -> list[Any]:
    try:
        data = load_json(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise DataError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(data, list):
        raise DataError(f"{path}: COCO results are a list of detections, but this is a {type(data).__name__}")
    return data


def _image(entry: Any, position: Mapping[int | str, int], annotations: Annotations) -> int:
    if not isinstance(entry, dict):
        raise DataError(f"expected an object, got {quote(entry)}")
    image_id = _field(entry, "image_id")
    if type(image_id) not in (int, str) or image_id not in position:  # True is no 1 here
        raise DataError(f"image_id {quote(image_id)} is not an image of {annotations.source}")
    return position[image_id]


def _detection(entry: dict[str, Any], label: Mapping[int, int], annotations: Annotations) -> _Detection:
    category = _field(entry, "category_id")
    if type(category) is not int or category not in label:
        raise DataError(f"category_id {quote(category)} is not a class of {annotations.source}")
    bbox = _field(entry, "bbox")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_finite, bbox))) or min(bbox[2:]) < 0:
        raise DataError(
            f"bbox {quote(bbox)} is not [x, y, width, height] with finite numbers and sizes of 0 or more"
        )
    score = _field(entry, "score")
    if not is_finite(score):
        raise DataError(f"score {quote(score)} is not a finite number")
    x, y, width, height = bbox
    return _Detection([x, y, x + width, y + height], score, label[category])


def _field(entry: dict[str, Any], name: str) -> Any:
    if name not in entry:
        raise DataError(f"{name} is missing")
    return entry[name]


def _prediction(detections: list[_Detection]) -> Prediction:
    # Python's sort is stable also in reverse: equal scores keep the order of the file, as in pycocotools.
    ordered = sorted(detections, key=lambda detection: detection.score, reverse=True)
    return Prediction(
        boxes=torch.tensor([detection.box for detection in ordered], dtype=torch.float64).reshape(-1, 4),
        scores=torch.tensor([detection.score for detection in ordered], dtype=torch.float64),
        labels=torch.tensor([detection.label for detection in ordered], dtype=torch.int64),
    )


def _target(record: Record, index: int) -> Target:
    return Target(
        boxes=torch.from_numpy(_as_annotated(record.boxes)),
        labels=torch.from_numpy(record.labels),
        ignore=torch.from_numpy(record.ignore),
        area=torch.from_numpy(record.area),
        index=torch.tensor(index),
    )


def _as_annotated(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (N, 4) boxes with the decimals of the annotation file instead of their neighbours in float32.

    The shortest decimal that rounds to a float32 is the one it came from, up to 6 digits always and at 7
    mostly. Boxes a whole number of pixels apart overlap by exactly 0.6 or 0.8, and there the rounding turns a
    hit into a miss: it does so in the results published with the COCO API.
    """
    return boxes.astype(np.str_).astype(np.float64)

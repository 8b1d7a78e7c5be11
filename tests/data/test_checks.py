"""Annotations that are probably not what was meant are told, and right ones are not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from defeat.data import DetectionDataModule, read_coco, read_voc
from defeat.data.checks import box_problems, crowding_problems, refuse
from defeat.errors import DataError

Boxes = NDArray[np.float64]

WIDTH, HEIGHT = 640, 480


def sound(count: int, seed: int = 0) -> Boxes:
    """(N, 4) xywh of all sizes and places, some of the whole picture."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0.1, 1, (count, 2)) ** 2 * (WIDTH, HEIGHT)
    corners = rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate([corners, sides], axis=1)


def causes_of_yolo(numbers: Boxes) -> list[str]:
    """Read (N, 4) pixels as a centre and two sides."""
    half = numbers[:, 2:] / 2
    xyxy = np.concatenate([numbers[:, :2] - half, numbers[:, :2] + half], axis=1)
    sizes = (np.full(len(xyxy), side) for side in (WIDTH, HEIGHT))
    return [p.cause for p in box_problems(xyxy, *sizes, lambda box: f"{box}.jpg", "cxcywh")]


def test_boxes_of_yolo_in_another_order() -> None:
    boxes = sound(400)
    centres = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    assert causes_of_yolo(centres) == []
    (cause,) = causes_of_yolo(boxes)
    assert "seem to be x, y, width, height where x and y of the centre, width, height is read" in cause
    (cause,) = causes_of_yolo(corners(boxes))
    assert "seem to be x1, y1, x2, y2 where" in cause


def causes(xywh: Boxes, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    sizes = (np.full(len(xywh), side) for side in (width, height))
    return [problem.cause for problem in box_problems(xyxy, *sizes, lambda box: f"{box}.jpg")]


def corners(xywh: Boxes) -> Boxes:
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


WRONG: dict[str, tuple[Callable[[Boxes], Boxes], str]] = {
    "shares": (lambda b: b / (WIDTH, HEIGHT, WIDTH, HEIGHT), "in 0..1"),
    "percent": (lambda b: b / (WIDTH, HEIGHT, WIDTH, HEIGHT) * 100, "in percent"),
    "corners": (corners, "seem to be x1, y1, x2, y2"),
    "centres": (lambda b: b + np.concatenate([b[:, 2:] / 2, 0 * b[:, 2:]], axis=1), "of the centre"),
    "other pictures": (lambda b: b + np.array([WIDTH, 0, 0, 0]), "reach out of their pictures"),
    "corners as sizes": (lambda b: np.concatenate([b[:, :2], b[:, 2:] - 100], axis=1), "no width or height"),
    "below a pixel": (
        lambda b: np.where(np.arange(len(b))[:, None] % 20, b, b * (1, 1, 0.002, 1)),
        "less than",
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", WRONG)
def test_boxes_in_other_units_or_order(kind: str, seed: int) -> None:
    change, told = WRONG[kind]
    (cause,) = causes(change(sound(400, seed)))
    assert told in cause


@pytest.mark.parametrize("count", [0, 1, 3, 400])
@pytest.mark.parametrize("seed", range(5))
def test_sound_boxes_are_not_suspected(count: int, seed: int) -> None:
    boxes = sound(count, seed)
    assert causes(boxes) == []
    assert causes(boxes * (0.5, 0.5, 1, 1)) == []  # more to the left and top
    assert causes(boxes + np.array([-1, -1, 2, 2])) == []  # counted from 1, or drawn a pixel too wide
    tight = np.clip(boxes, 0, 20)
    assert causes(tight) == []  # small ones in one corner of every picture


def test_real_data_are_not_suspected(shared: Path) -> None:
    read = [read_voc("BCCD", name, root=shared / "bccd") for name in ("train", "val", "test")] + [
        read_coco(path, None) for path in sorted((shared / "coco_open_320" / "annotations").glob("*.json"))
    ]
    read.append(read_coco(shared / "coco_eval_reference" / "instances_val2014_100.json", None))
    assert [problem for annotations in read for problem in annotations.problems] == []


def data_module(coco) -> DetectionDataModule:
    coco.write()
    reader = partial(read_coco, coco.file, coco.images)
    return DetectionDataModule(train=reader, val=reader)


def test_what_is_wrong_is_said_once_for_both_splits(coco, caplog: pytest.LogCaptureFixture) -> None:
    for image in coco.content["images"]:
        image["neg_category_ids"] = [3]
    coco.content["categories"].insert(0, {"id": 0, "name": "animals"})
    with caplog.at_level(logging.WARNING):
        data_module(coco).setup("fit")
    assert len(caplog.messages) == 2
    lvis, absent = caplog.messages
    assert str(coco.file) in lvis
    assert "neg_category_ids" in lvis
    assert "no object is of class animals, 1 of 3 classes" in absent


def test_no_objects_at_all_stop_a_training_and_no_evaluation(coco, caplog: pytest.LogCaptureFixture) -> None:
    coco.content["annotations"] = coco.content["annotations"][2:3]  # a crowd
    data = data_module(coco)
    data.setup("validate")
    (line,) = caplog.messages
    assert "none of 3 images has an object, but for 1 box to ignore" in line
    with pytest.raises(DataError, match="train: none of 3 images has an object"):
        refuse("train", data.read("train").problems)


def test_the_first_pictures_with_wrong_boxes_are_named(coco) -> None:
    for annotation in coco.content["annotations"]:
        annotation["bbox"] = [side / 100 for side in annotation["bbox"]]
    (problem,) = read_coco(*coco.write()).problems
    assert "4 of 4 boxes (first in 'b.png', 'a.jpg') end within the first pixel" in problem.cause


def test_images_with_more_objects_than_detections(coco) -> None:
    (problem,) = crowding_problems(
        read_coco(*coco.write()), 1
    )  # the one of two that is no crowd does not count
    assert "1 of 3 images have more than 1 objects, such as a.jpg with 2" in problem.cause
    assert not list(crowding_problems(read_coco(*coco.write()), 2))


@pytest.mark.parametrize("area", [12, "12"])
def test_boxes_marked_to_ignore_are_regions_to_ignore(coco, area) -> None:
    for annotation, marks in zip(coco.content["annotations"], [(0, 1), (0, 0), (1, 0), (1, 1)], strict=True):
        annotation["iscrowd"], annotation["ignore"] = marks
    coco.content["annotations"].append(
        {"image_id": 31, "category_id": 3, "bbox": [1, 1, 9, 9], "ignore": True}
    )
    ignored = [record.ignore.tolist() for record in read_coco(*coco.write()).records]
    assert ignored == [[False, True], [True, True], [True]]

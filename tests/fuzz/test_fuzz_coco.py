"""COCO files with anything wrong: a data set whose every box is accounted for, or one line."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from defeat.data import fingerprint, read_coco
from defeat.data.boxes import MIN_SIDE
from defeat.errors import DataError
from defeat.types import Annotations
from tests.helpers.mutations import (
    ByteChange,
    Change,
    byte_changes,
    change_bytes,
    change_tree,
    changes,
    to_json,
)
from tests.helpers.sound_data import check_pictures, check_records
from tests.helpers.trials import Tally, refused, sizes, try_inputs

WIDTH, HEIGHT = 60, 40

OF_THE_FILE = (
    "is not valid JSON: ",
    "must hold a list '",
    "must hold an object with images",
    "its list 'categories' is empty",
)
"""What is wrong with a file where no record is to blame."""


class Case(NamedTuple):
    tree: list[Change]
    text: list[ByteChange]
    skip: bool
    classes: list[str] | None


cases = st.builds(
    Case,
    changes,
    st.just([]) | st.just([]) | st.just([]) | byte_changes,
    st.booleans(),
    st.none() | st.none() | st.just(["dog", "cat", "zebra"]) | st.just(["dog"]),
)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    names = ["a.jpg", "b.png", "folder/c.jpg", "d.jpg"]
    images = [
        {"id": 7 * i, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for i, name in enumerate(names, start=1)
    ]
    boxes = [(1, 2, 30, 20), (10.5, 5, 20, 10), (0, 0, 60, 40), (50, 30, 20, 5), (1, 1, 0, 5), (70, 1, 5, 5)]
    annotations = [
        {
            "id": 100 + i,
            "image_id": 7 * (i % 3 + 1),
            "category_id": (3, 18)[i % 2],
            "bbox": list(box),
            "area": 100.5,
            "iscrowd": int(i == 2),
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
        for i, box in enumerate(boxes)
    ]
    categories = [{"id": 18, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "dog"}]
    return {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four pictures, and with everything that is no picture but could be named."""
    root = tmp_path_factory.mktemp("coco")
    images = root / "images"
    (images / "folder").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "folder/c.jpg", "d.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / name)
    (root / "secret.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "link.jpg").symlink_to(root / "secret.jpg")
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "up").symlink_to(root)
    os.mkfifo(images / "pipe.jpg")
    return root


@sizes(quick=75, full=2200)
def test_changed_coco_files(examples: int, content: dict[str, Any], root: Path, tally: Tally) -> None:
    file = root / "instances.json"

    def check(case: Case) -> str:
        file.write_bytes(change_bytes(to_json(change_tree(content, case.tree)), case.text))
        try:
            data = read_coco(file, root / "images", case.classes, "skip" if case.skip else "raise")
        except DataError as error:
            told = refused(error, "instances.json")
            named = re.search(r"(images|annotations|categories)\[\d+\]", told)
            assert named or any(part in told for part in OF_THE_FILE), told
            return told
        given = json.loads(file.read_bytes().decode("utf-8-sig"))
        check_annotations(data, given, skip=case.skip)
        check_pictures(data)
        return "read, some left out" if any("skipped" in reason for reason in data.counts) else "read"

    try_inputs("COCO JSON", cases, check, examples, tally)


def check_annotations(data: Annotations, given: dict[str, Any], *, skip: bool) -> None:
    """Everything in the file is in the data set or in its counts, by a count of our own."""
    counts = data.counts
    assert skip or not any("skipped" in reason for reason in counts)
    assert len(data.records) + counts.get("images skipped", 0) == len(given["images"])
    used = {record.image_id for record in data.records}
    left_out = {whole(item.get("id")) for item in given["images"] if isinstance(item, dict)} - used
    of_left_out = sum(
        isinstance(item, dict) and whole(item.get("image_id")) in left_out - {None}
        for item in given["annotations"]
    )
    kept = sum(len(record.boxes) for record in data.records)
    dropped = counts.get("degenerate boxes dropped", 0) + counts.get("boxes outside dropped", 0)
    assert kept + dropped + counts.get("annotations skipped", 0) + of_left_out == len(given["annotations"])
    assert len(set(data.classes)) == len(data.classes) == len(set(data.class_ids))
    assert len(fingerprint(data)) == 64
    named = {str(item.get("file_name")) for item in given["images"] if isinstance(item, dict)}
    respelt = [r.path for r in data.records if not {r.path.name, f"folder/{r.path.name}"} & named]
    assert len(set(respelt)) == len(respelt) <= counts.get("files found by another spelling of their name", 0)
    check_records(data)
    check_content(data, given)


def whole(value: object) -> int | None:
    """The whole number that an id stands for, if it stands for one."""
    if type(value) not in (int, float) or not -(2**53) <= value <= 2**53 or value != int(value):  # type: ignore[operator, call-overload]
        return None
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_content(data: Annotations, given: dict[str, Any]) -> None:
    """Boxes that are clearly in their image stand in its record, with their class."""
    names = {whole(item["id"]): item["name"] for item in given["categories"]}
    by_id = {record.image_id: record for record in data.records}
    for item in given["annotations"]:
        if not isinstance(item, dict) or not is_sound(item) or whole(item["image_id"]) not in by_id:
            continue
        record = by_id[whole(item["image_id"])]  # type: ignore[index]
        if names.get(whole(item["category_id"])) not in data.classes:
            continue
        box = corners(item["bbox"], record.width, record.height)
        if min(box[2] - box[0], box[3] - box[1]) < 1:
            continue
        label = data.classes.index(names[whole(item["category_id"])]) + 1
        # float32 has 7 digits
        near = np.abs(record.boxes - np.array(box)).max(axis=1, initial=0) <= 1e-6 * max(map(abs, box)) + 1e-3
        assert (near & (record.labels == label)).any(), item


def is_sound(item: dict[str, Any]) -> bool:
    box, area = item.get("bbox"), item.get("area", 1)
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(x) in (int, float) and math.isfinite(x) and abs(x) <= 2**53 for x in box)
        and (area is None or (type(area) in (int, float) and 0 <= area <= 2**53))
        and item.get("iscrowd", 0) in (0, 1)
        and {"image_id", "category_id"} <= item.keys()
    )


def corners(box: Sequence[float], width: int, height: int) -> tuple[float, ...]:
    x, y, w, h = box
    if w < MIN_SIDE or h < MIN_SIDE:
        return 0, 0, 0, 0
    return tuple(
        min(max(value, 0.0), limit)
        for value, limit in zip((x, y, x + w, y + h), (width, height) * 2, strict=True)
    )

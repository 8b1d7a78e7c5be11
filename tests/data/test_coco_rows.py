"""Annotations that are packed while they are parsed give what a look at each of them gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import defeat.data.coco_boxes as coco_boxes
from defeat.data import read_coco
from defeat.data.coco_rows import PACKED, PlainRows, unpacked
from defeat.errors import DataError
from defeat.types import Annotations

PLAIN = {"id": 930, "image_id": 7, "category_id": 3, "bbox": [1, 2.5, 30, 20], "area": 450.5, "iscrowd": 0}


def same(left: Annotations, right: Annotations) -> bool:
    assert left._replace(records=[]) == right._replace(records=[])
    assert len(left.records) == len(right.records)
    for one, other in zip(left.records, right.records, strict=True):
        assert one[:4] == other[:4]
        for ours, theirs in zip(one[4:], other[4:], strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)
    return True


def test_what_is_packed_comes_back() -> None:
    rows = PlainRows()
    given = [PLAIN, PLAIN | {"id": -(2**53), "area": None, "iscrowd": 1}, PLAIN | {"ignore": 1}]
    assert [rows.take(dict(item, segmentation=[[1, 2]])) for item in given] == [PACKED] * 3
    back = [unpacked(row) for row in rows.columns()]
    assert [item.pop("ignore") for item in back] == [0, 1, 1]
    same = PLAIN.keys() - {"iscrowd"}
    assert back == [{key: item[key] for key in same} for item in given]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bbox", [1, 2, 3]),
        ("bbox", (1, 2, 3, 4)),
        ("bbox", [1, 2, True, 4]),
        ("bbox", [1, 2, float("nan"), 4]),
        ("bbox", [1, 2, 2**53 + 1, 4]),
        ("bbox", None),
        ("id", None),
        ("id", 2**53 + 1),
        ("image_id", 7.0),
        ("image_id", True),
        ("category_id", "3"),
        ("ignore", 2),
        ("ignore", True),
        ("iscrowd", 2),
        ("iscrowd", True),
        ("iscrowd", 0.0),
        ("area", -1),
        ("area", float("inf")),
        ("area", "9"),
    ],
)
def test_what_is_odd_stays_what_it_is(name: str, value: object) -> None:
    rows, item = PlainRows(), {**PLAIN, name: value}
    assert rows.take(item) is item
    assert len(rows.columns()) == 0


def odd(item: dict[str, Any]) -> dict[str, Any]:
    """The same in another spelling, which is looked at closely."""
    return {**item, "image_id": float(item["image_id"])}


@pytest.mark.parametrize("which", [range(4), [0], [1, 2], [3], []])
def test_looking_closely_gives_the_same(coco, which) -> None:
    plain = read_coco(*coco.write())
    for i in which:
        coco.content["annotations"][i] = odd(coco.content["annotations"][i])
    assert same(read_coco(*coco.write()), plain)


def test_boxes_keep_their_order_where_some_are_looked_at_closely(coco) -> None:
    rng = np.random.default_rng(0)
    annotations = [
        {**PLAIN, "id": i, "image_id": (7, 900)[i % 2], "bbox": [0, 0, 1 + i / 10, 5]} for i in range(400)
    ]
    coco.content["annotations"] = [odd(item) if rng.random() < 0.3 else item for item in annotations]
    for start, record in enumerate(read_coco(*coco.write()).records[:2]):
        assert record.boxes[:, 2].tolist() == pytest.approx([1 + i / 10 for i in range(start, 400, 2)])


def test_the_first_wrong_one_is_named_whether_it_is_plain_or_not(coco) -> None:
    unknown, broken = {**PLAIN, "image_id": 8}, {**PLAIN, "id": 931, "bbox": [1, 2, 3]}
    for first, second, words in (
        (unknown, broken, "(id 930): image_id 8"),
        (broken, unknown, "(id 931): bbox"),
    ):
        coco.content["annotations"] = [PLAIN, first, second]
        with pytest.raises(DataError, match=r"annotations\[1\] ") as caught:
            read_coco(*coco.write())
        assert words in str(caught.value)
    assert read_coco(*coco.write(), on_error="skip").counts == {"annotations skipped": 2}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["images"][1].update(PLAIN, id=900),
        lambda content: content["annotations"][1].update(attributes=[PLAIN]),
        lambda content: content["categories"][0].update(example=PLAIN),
        lambda content: content.update(info=PLAIN),
    ],
    ids=["image", "inside", "category", "info"],
)
def test_the_like_of_an_annotation_elsewhere_is_none(coco, change) -> None:
    plain = read_coco(*coco.write())
    change(coco.content)
    assert same(read_coco(*coco.write()), plain)


def test_a_file_that_is_one_annotation_is_no_coco(coco) -> None:
    coco.content = dict(PLAIN)
    with pytest.raises(DataError, match="must hold a list 'images', got None"):
        read_coco(*coco.write())


def test_plain_annotations_are_never_objects(coco, monkeypatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(coco_boxes, "_owner", lambda item, positions: looked.append(item))
    coco.content["annotations"][2]["iscrowd"] = True
    read_coco(*coco.write())
    assert [item["id"] for item in looked] == [932]

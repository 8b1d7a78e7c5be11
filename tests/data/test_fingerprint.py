from pathlib import Path

import numpy as np
import pytest

from defeat.data import fingerprint
from defeat.types import Annotations, Record


def record(image_id: int | str, boxes: int) -> Record:
    corners = np.arange(boxes * 4, dtype=np.float32).reshape(-1, 4)
    return Record(
        image_id,
        Path("a.jpg"),
        60,
        40,
        corners,
        np.ones(boxes, dtype=np.int64),
        np.zeros(boxes, dtype=np.bool_),
        np.ones(boxes, dtype=np.float32),
    )


@pytest.fixture
def data() -> Annotations:
    return Annotations([record(7, 2), record(900, 0)], ("cat", "dog"), (1, 2), "here", {})


def test_it_is_a_sha256_that_stays_the_same(data) -> None:
    assert fingerprint(data) == "fdc3facc62188c81df65bc7dda4deac50fac6de6c8a326c92df6d5e97ed3dc16"


def test_where_the_files_lie_does_not_matter(data) -> None:
    moved = [item._replace(path=Path("/elsewhere") / "b.png") for item in data.records]
    assert fingerprint(data._replace(records=moved, source="there", counts={"x": 1})) == fingerprint(data)


def test_the_memory_layout_of_the_boxes_does_not_matter(data) -> None:
    first = data.records[0]
    same = first._replace(
        boxes=np.asfortranarray(first.boxes).astype(">f4"), labels=first.labels.astype(np.int32)
    )
    assert fingerprint(data._replace(records=[same, data.records[1]])) == fingerprint(data)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 8},
        {"image_id": "7"},
        {"width": 61},
        {"height": 41},
        {"boxes": np.ones((2, 4), dtype=np.float32)},
        {"labels": np.array([1, 2])},
        {"ignore": np.array([True, False])},
    ],
)
def test_every_field_of_a_record_matters(data, change) -> None:
    changed = [data.records[0]._replace(**change), data.records[1]]
    assert fingerprint(data._replace(records=changed)) != fingerprint(data)


@pytest.mark.parametrize(
    "change", [{"classes": ("cat", "cow")}, {"classes": ("dog", "cat")}, {"class_ids": (1, 3)}]
)
def test_the_classes_matter(data, change) -> None:
    assert fingerprint(data._replace(**change)) != fingerprint(data)


def test_order_and_number_of_records_matter(data) -> None:
    for records in (data.records[::-1], data.records[:1], data.records * 2, []):
        assert fingerprint(data._replace(records=records)) != fingerprint(data)

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from defeat.data.error_policy import ErrorPolicy
from defeat.data.records import BoxColumns, ImageRow, Records, build_records
from defeat.types import Record


def build(ids: Sequence[int | str], boxes: int = 0) -> Records:
    rows = [ImageRow(name, Path("folder") / f"é{name}.jpg", 60 + i, 40) for i, name in enumerate(ids)]
    columns = BoxColumns()
    for box in range(boxes):
        columns.add(box % len(rows), (box % 30, 0, 31, 9), box % 7 + 1, box % 5 == 0)
    return build_records(rows, columns, ErrorPolicy("here", "raise"))


def known(record: Record) -> tuple[object, ...]:
    return (*record[:4], *(column.tolist() for column in record[4:]))


@pytest.mark.parametrize("ids", [[7, -3, 2**53], ["000001", "2008_é", ""]])
def test_fields_and_their_types(ids) -> None:
    records = build(ids, 4)
    assert [record.image_id for record in records] == ids
    assert [type(record.image_id) for record in records] == [type(name) for name in ids]
    assert records[1].path == Path("folder") / f"é{ids[1]}.jpg"
    assert known(records[0])[2:] == (
        *(60, 40),
        [[0, 0, 31, 9], [3, 0, 31, 9]],
        [1, 4],
        [True, False],
        [31 * 9, 28 * 9],
    )
    assert type(records[0].width) is int
    assert [column.dtype for column in records[2][4:]] == [np.float32, np.int64, np.bool_, np.float32]


def test_it_is_a_sequence() -> None:
    records = build(range(10), 50)
    everything = [known(record) for record in records]
    assert len(records) == len(everything) == 10
    assert known(records[-1]) == everything[-1]
    for cut in (slice(3), slice(2, 8), slice(None, None, -2), slice(20, None)):
        part = records[cut]
        assert [known(record) for record in part] == everything[cut]
        assert len(part) == len(everything[cut])
    assert known(records[2:8][1:][0]) == everything[3]
    for outside in (10, -11):
        with pytest.raises(IndexError):
            records[outside]
    assert not build([])


def test_slices_and_records_share_the_boxes() -> None:
    records = build(range(4), 40)
    assert np.shares_memory(records[1].boxes, records[:3][1].boxes)


def test_what_goes_to_a_worker_is_small() -> None:
    records = build(range(1000), 7000)
    sent = pickle.dumps(records)
    assert len(sent) < 1000 * 80 + 7000 * 30
    assert [known(record) for record in pickle.loads(sent)] == [known(record) for record in records]

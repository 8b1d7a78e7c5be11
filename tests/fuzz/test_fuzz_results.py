"""COCO results files with anything wrong: every detection in its image, or one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from defeat.errors import DataError
from defeat.evaluation import evaluate_results, read_results
from defeat.types import Annotations, Record
from tests.helpers.mutations import (
    ByteChange,
    Change,
    byte_changes,
    change_bytes,
    change_tree,
    changes,
    to_json,
)
from tests.helpers.trials import Tally, refused, sizes, try_inputs

SOUND: list[dict[str, Any]] = [
    {
        "image_id": 7 * (i % 3),
        "category_id": (3, 18)[i % 2],
        "bbox": [i, 2 * i, 30.5, 20],
        "score": 0.9 - i / 10,
    }
    for i in range(6)
]


class Case(NamedTuple):
    tree: list[Change]
    text: list[ByteChange]


cases = st.builds(Case, changes, st.just([]) | st.just([]) | byte_changes)


def truth() -> Annotations:
    box = np.array([[1, 2, 31, 22]], dtype=np.float32)
    records = [
        Record(
            7 * i, Path(f"{i}.jpg"), 60, 40, box, np.array([1 + i % 2]), np.array([False]), np.float32([600])
        )
        for i in range(3)
    ]
    return Annotations(records, ("dog", "cat"), (3, 18), "instances.json", {})


@sizes(quick=80, full=1000)
def test_changed_results_files(examples: int, tmp_path: Path, tally: Tally) -> None:
    annotations, path = truth(), tmp_path / "results.json"

    def check(case: Case) -> str:
        path.write_bytes(change_bytes(to_json(change_tree(SOUND, case.tree)), case.text))
        try:
            read = read_results(path, annotations)
        except DataError as error:
            told = refused(error, "results.json")
            whole_file = ("not a JSON file", "are a list of detections")
            assert re.search(r"entry \d+: ", told) or any(part in told for part in whole_file), told
            return told
        given = json.loads(path.read_bytes().decode("utf-8-sig"))
        assert sum(len(prediction["boxes"]) for prediction in read) == len(given)
        for record, prediction in zip(annotations.records, read, strict=True):
            own = [entry for entry in given if entry["image_id"] == record.image_id]
            assert sorted(entry["score"] for entry in own) == sorted(prediction["scores"].tolist())
            assert torch.isfinite(prediction["boxes"]).all()
            assert torch.isfinite(prediction["scores"]).all()
            assert (prediction["scores"].diff() <= 0).all()
            assert ((prediction["labels"] >= 1) & (prediction["labels"] <= 2)).all()
        figures = evaluate_results(annotations, path).coco
        assert 0 <= figures["AP"] <= 1
        return "read"

    try_inputs("results JSON", cases, check, examples, tally)

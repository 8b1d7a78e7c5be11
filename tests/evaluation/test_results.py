import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from defeat.errors import DataError
from defeat.evaluation import COCO_KEYS, evaluate_results, read_results, write_results
from defeat.types import Annotations, Record
from tests.helpers.evaluation_cases import CLASSES, Case, evaluate, make_prediction, random_case

REFERENCE = Path(__file__).parents[2].parent / "shared" / "data" / "coco_eval_reference"
KNOWN = {  # published with the files, see their SOURCE.txt
    "AP": 0.5045806987,
    "AP50": 0.6969727247,
    "AP75": 0.5729816670,
    "APs": 0.5856257209,
    "APm": 0.5193996948,
    "APl": 0.5013978986,
    "AR1": 0.3868127796,
    "AR10": 0.5936795763,
    "AR100": 0.5953529829,
    "ARs": 0.6398109626,
    "ARm": 0.5664205979,
    "ARl": 0.5642905983,
}


def annotations_of(case: Case, ids=None) -> Annotations:
    records = []
    for n, target in enumerate(case.targets):
        arrays = (target[name].numpy() for name in ("boxes", "labels", "ignore", "area"))
        records.append(Record(n + 100 if ids is None else ids[n], Path(f"{n}.jpg"), 400, 400, *arrays))
    return Annotations(records, CLASSES, (2, 3, 5, 7, 11), "train.json", {})


@pytest.fixture(scope="module")
def case():
    return random_case(5, images=6, whole_pixels=False)


@pytest.mark.parametrize("ids", [None, [f"2007_{n:06d}" for n in range(6)]], ids=["numbers", "VOC stems"])
def test_a_written_file_reads_back_exactly(case, tmp_path, ids):
    annotations, path = annotations_of(case, ids), tmp_path / "new" / "results.json"
    write_results(path, annotations, dict(enumerate(case.predictions)))
    read = read_results(path, annotations)
    assert len(read) == 6
    for given, back in zip(case.predictions, read, strict=True):
        assert torch.equal(given["boxes"], back["boxes"].float())
        assert torch.equal(given["scores"], back["scores"].float())
        assert torch.equal(given["labels"], back["labels"])
    assert evaluate_results(annotations, path).to_json() == evaluate(case).to_json()


def test_the_file_has_the_ids_of_the_data_set_and_xywh(tmp_path, case):
    path, annotations = tmp_path / "results.json", annotations_of(case)
    write_results(path, annotations, {3: make_prediction([[1, 2, 11, 32]], [0.5], [4])})
    assert json.loads(path.read_text()) == [
        {"image_id": 103, "category_id": 7, "bbox": [1.0, 2.0, 10.0, 30.0], "score": 0.5}
    ]
    assert [len(prediction["boxes"]) for prediction in read_results(path, annotations)] == [0, 0, 0, 1, 0, 0]


def test_detections_come_best_first_and_ties_in_order_of_the_file(tmp_path, case):
    path, annotations = tmp_path / "results.json", annotations_of(case)
    rows = [(10, 0.2), (20, 0.9), (30, 0.2), (40, 0.9)]
    entries = [
        {"image_id": 100, "category_id": 2, "bbox": [0, 0, side, side], "score": score}
        for side, score in rows
    ]
    path.write_text(json.dumps(entries))
    assert read_results(path, annotations)[0]["boxes"][:, 2].tolist() == [20, 40, 10, 30]


def test_an_empty_list_is_a_detector_that_finds_nothing(tmp_path, case):
    path = tmp_path / "results.json"
    path.write_text("[]")
    evaluation = evaluate_results(annotations_of(case), path)
    assert evaluation.coco["AP"] == 0
    assert evaluation.images == 6


GOOD = {"image_id": 100, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, "image_id 7 is not an image of train.json"),
        ({"image_id": "100"}, "image_id '100' is not an image"),
        ({"image_id": [100]}, r"image_id \[100\] is not an image"),
        ({"category_id": 1}, "category_id 1 is not a class of train.json"),
        ({"category_id": None}, "category_id None is not a class"),
        ({"bbox": [0, 0, 5]}, r"bbox \[0, 0, 5\] is not \[x, y, width, height\]"),
        ({"bbox": [0, 0, -1, 5]}, r"bbox \[0, 0, -1, 5\] is not .* sizes of 0 or more"),
        ({"bbox": [0, math.nan, 5, 5]}, "bbox .* finite"),
        ({"bbox": [0, 0, 5, "5"]}, "bbox .* finite"),
        ({"bbox": 5}, "bbox 5 is not"),
        ({"score": math.inf}, "score inf is not a finite number"),
        ({"score": "high"}, "score 'high' is not a finite number"),
        ({"score": True}, "score True is not a finite number"),
    ],
)
def test_a_wrong_entry_is_named_with_its_file(tmp_path, case, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, {**GOOD, **change}]))
    with pytest.raises(DataError, match=rf"results\.json: entry 1: {message}"):
        read_results(path, annotations_of(case))


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_named(tmp_path, case, name):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{key: value for key, value in GOOD.items() if key != name}]))
    with pytest.raises(DataError, match=rf"results\.json: entry 0: {name} is missing"):
        read_results(path, annotations_of(case))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"annotations": []}', "are a list of detections, but this is a dict"),
        (b"[", "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        (b"[5]", "entry 0: expected an object, got 5"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, case, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"results\.json: .*{message}"):
        read_results(path, annotations_of(case))


def test_a_file_that_is_not_there_is_named(tmp_path, case):
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        read_results(tmp_path / "absent.json", annotations_of(case))


@pytest.mark.parametrize("label", [0, 6])
def test_a_label_without_a_class_is_not_written(tmp_path, case, label):
    with pytest.raises(IndexError, match=rf"image 100: label {label} is not in 1\.\.5"):
        write_results(
            tmp_path / "r.json", annotations_of(case), {0: make_prediction([[0, 0, 1, 1]], [1], [label])}
        )
    assert not (tmp_path / "r.json").exists()


@pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"reference results are not at shared/data/{REFERENCE.name}"
)
def test_published_figures_of_the_reference_results():
    truth = json.loads((REFERENCE / "instances_val2014_100.json").read_text())
    evaluation = evaluate_results(
        _reference_annotations(truth), REFERENCE / "instances_val2014_fakebbox100_results.json"
    )
    assert tuple(KNOWN) == COCO_KEYS
    assert evaluation.coco == pytest.approx(KNOWN, abs=1e-6)
    assert evaluation.images == 100
    assert len(evaluation.per_class) == 80


def _reference_annotations(truth) -> Annotations:
    """As ``read_coco`` does, for which the images themselves would have to be there."""
    class_ids = tuple(category["id"] for category in truth["categories"])
    records = []
    for image in truth["images"]:  # not in the order of their ids, which tells in ties
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        records.append(
            Record(
                image_id=image["id"],
                path=Path(image["file_name"]),
                width=image["width"],
                height=image["height"],
                boxes=boxes.astype(np.float32),
                labels=np.array([class_ids.index(row["category_id"]) + 1 for row in rows], dtype=np.int64),
                ignore=np.array([row["iscrowd"] for row in rows], dtype=np.bool_),
                area=np.array([row["area"] for row in rows], dtype=np.float32),
            )
        )
    names = tuple(category["name"] for category in truth["categories"])
    return Annotations(records, names, class_ids, "instances_val2014_100.json", {})

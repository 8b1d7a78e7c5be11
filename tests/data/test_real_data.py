"""The readers on real data sets, where they are present."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from defeat.data import DetectionDataModule, DetectionDataset, drop_undecodable, read_coco, read_voc
from tests.helpers.tools import load_tool


def total(annotations) -> int:
    return sum(len(record.boxes) for record in annotations.records)


@pytest.fixture(scope="session")
def bccd(shared: Path) -> Path:
    return shared / "bccd" / "BCCD"


@pytest.fixture(scope="session")
def photos(shared: Path) -> Path:
    return shared / "coco_open_320"


def test_bccd_blood_cells(bccd: Path) -> None:
    names = ("train", "val", "test")
    splits = [read_voc(bccd, name) for name in names]
    assert [len(split.records) for split in splits] == [205, 87, 72]
    assert {split.classes for split in splits} == {("Platelets", "RBC", "WBC")}
    dropped = [split.counts.get("degenerate boxes dropped", 0) for split in splits]
    assert sum(dropped) == 2
    assert sum(map(total, splits)) + sum(dropped) == 4888
    assert sum(sum(split.counts.values()) for split in splits) == 2
    joined = read_voc([bccd, bccd, bccd], names)
    assert len(joined.records) == 364
    assert {(record.width, record.height) for record in joined.records} == {(640, 480)}


def test_bccd_a_known_box(bccd: Path) -> None:
    record = next(item for item in read_voc(bccd, "train").records if item.image_id == "BloodImage_00001")
    assert record.boxes[0].tolist() == [67, 314, 286, 480]
    assert record.labels[0] == 3


@pytest.mark.parametrize(
    ("split", "images", "boxes", "crowds"), [("train", 336, 2085, 17), ("val", 84, 496, 7)]
)
def test_coco_photos(photos: Path, split: str, images: int, boxes: int, crowds: int, caplog) -> None:
    data = read_coco(f"annotations/instances_{split}.json", "images", root=photos)
    assert len(data.records) == images
    assert total(data) == boxes
    assert sum(int(record.ignore.sum()) for record in data.records) == crowds
    assert len(data.classes) == 80
    assert data.class_ids[:13] == (*range(1, 12), 13, 14)
    assert data.class_ids[-1] == 90
    assert data.counts == {}  # coordinates rounded to 0.01 pass the border, but are no fault
    assert not caplog.records


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_set_of_persons_has_all_photos_and_the_persons_of_each(
    photos: Path, split: str, tmp_path: Path
) -> None:
    folder = load_tool("evidence").copy_persons(photos, tmp_path / "persons")
    file = f"annotations/instances_{split}.json"
    data, whole = (read_coco(file, "images", root=root) for root in (folder, photos))
    assert data.classes == ("person",)
    for record, of_all in zip(data.records, whole.records, strict=True):
        person = of_all.labels == 1
        assert record.image_id == of_all.image_id
        np.testing.assert_array_equal(record.boxes, of_all.boxes[person])
        np.testing.assert_array_equal(record.ignore, of_all.ignore[person])


def test_coco_photos_decode_to_the_size_annotated(photos: Path) -> None:
    data = read_coco("annotations/instances_val.json", "images", root=photos)
    assert drop_undecodable(data).counts == {}
    for image, target in map(DetectionDataset(data).__getitem__, range(5)):
        record = data.records[int(target["index"])]
        assert image.shape == (3, record.height, record.width)
        assert np.array_equal(target["boxes"], record.boxes)


def test_coco_photos_train_without_their_crowds(photos: Path) -> None:
    readers = [
        partial(read_coco, f"annotations/instances_{split}.json", "images") for split in ("train", "val")
    ]
    module = DetectionDataModule(*readers, root=str(photos), batch_size=4, limit_train=24, limit_val=8)
    module.setup("fit")
    expected = sum(int((~record.ignore).sum()) for record in module.annotations["train"].records)
    given = [target for batch in module.train_dataloader() for target in batch.targets]
    assert sum(len(target["boxes"]) for target in given) == expected
    assert not any(target["ignore"].any() for target in given)
    assert [len(batch.images) for batch in module.val_dataloader()] == [4, 4]

"""The same objects are read from every layout, and what cannot be told is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defeat.data import folder_data
from defeat.errors import ConfigError, DataError
from defeat.types import Annotations
from tests.helpers import layouts
from tests.helpers.data_sets import save_picture
from tests.helpers.layouts import CLASSES, TRAIN, VAL, Boxes


def objects(annotations: Annotations) -> dict[str, list[tuple[object, ...]]]:
    """Objects of each picture as in :data:`~tests.helpers.layouts.TRAIN`, sorted."""
    names = annotations.classes
    return {
        record.path.stem: sorted(
            (names[label - 1], *map(round, box))
            for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
        )
        for record in annotations.records
    }


def wanted(boxes: Boxes) -> dict[str, list[tuple[object, ...]]]:
    return {stem: sorted(items) for stem, items in boxes.items()}


def coco_original(root: Path) -> None:
    layouts.coco(root / "annotations/instances_train2017.json", root / "train2017", TRAIN)
    layouts.coco(root / "annotations/instances_val2017.json", root / "val2017", VAL)
    (root / "annotations/captions_val2017.json").write_text('{"images": [], "annotations": []}')


def coco_roboflow(root: Path) -> None:
    layouts.coco(root / "train/_annotations.coco.json", root / "train", TRAIN)
    layouts.coco(root / "valid/_annotations.coco.json", root / "valid", VAL)


def coco_beside(root: Path) -> None:
    layouts.coco(root / "train.json", root / "images", TRAIN, first=0)
    layouts.coco(root / "val.json", root / "images", VAL, first=0)


def voc_image_sets(root: Path) -> None:
    layouts.voc(root / "Annotations", root / "JPEGImages", {**TRAIN, **VAL})
    (root / "ImageSets/Main").mkdir(parents=True)
    for name, boxes in (("train", TRAIN), ("val", VAL), ("trainval", {**TRAIN, **VAL})):
        (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(boxes))
        (root / f"ImageSets/Main/cat_{name}.txt").write_text("\n".join(f"{stem}  1" for stem in boxes))


def voc_divided(root: Path) -> None:
    layouts.voc(root / "train", root / "train", TRAIN)
    layouts.voc(root / "valid", root / "valid", VAL)


def voc_two_roots(root: Path) -> None:
    for part, boxes in (("train", TRAIN), ("val", VAL)):
        layouts.voc(root / part / "Annotations", root / part / "images", boxes)


def voc_subfolders(root: Path) -> None:
    for part, boxes in (("train", TRAIN), ("val", VAL)):
        layouts.voc(root / "annotations" / part, root / "images" / part, boxes)


def yolo_yaml(root: Path) -> None:
    for part, boxes in (("train", TRAIN), ("val", VAL)):
        layouts.yolo(root / "labels" / part, root / "images" / part, boxes)
    (root / "data.yaml").write_text(
        "path: /another/machine/set\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"
    )


def yolo_roboflow(root: Path) -> None:
    for part, boxes in (("train", TRAIN), ("valid", VAL)):
        layouts.yolo(root / part / "labels", root / part / "images", boxes, polygons=True)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n"
    )


def yolo_lists(root: Path) -> None:
    """CVAT's: lists of pictures below the root, of another machine, by a Windows path."""
    layouts.yolo(root / "labels", root / "images", {**TRAIN, **VAL})
    (root / "data.yaml").write_text("path: .\ntrain: train.txt\nval: [val.txt]\nnames:\n  0: cat\n  1: dog\n")
    (root / "train.txt").write_text("".join(f"/home/me/set/images/{stem}.jpg\n" for stem in TRAIN))
    (root / "val.txt").write_text("".join(f"images\\{stem.upper()}.JPG\n" for stem in VAL))


def yolo_plain(root: Path) -> None:
    for part, boxes in (("train", TRAIN), ("val", VAL)):
        layouts.yolo(root / "labels" / part, root / "images" / part, boxes)
    (root / "classes.txt").write_text("cat\ndog\n")


def yolo_obj_data(root: Path) -> None:
    """CVAT's YOLO 1.1."""
    for part, boxes in (("train", TRAIN), ("valid", VAL)):
        layouts.yolo(root / f"obj_{part}_data", root / f"obj_{part}_data", boxes)
        names = "".join(f"data/obj_{part}_data/{stem}.jpg\n" for stem in boxes)
        (root / f"{part}.txt").write_text(names)
    (root / "obj.names").write_text("cat\ndog\n")
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = b/\n"
    )


DIVIDED = [
    coco_original,
    coco_roboflow,
    coco_beside,
    voc_image_sets,
    voc_divided,
    voc_two_roots,
    voc_subfolders,
    yolo_yaml,
    yolo_roboflow,
    yolo_lists,
    yolo_plain,
    yolo_obj_data,
]


@pytest.mark.parametrize("write", DIVIDED)
def test_divided_layouts(
    write: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    caplog.set_level(logging.INFO, "defeat.data.folder")
    data = folder_data(str(tmp_path))
    data.setup("fit")
    assert data.classes == CLASSES
    assert objects(data.annotations["train"]) == wanted(TRAIN)
    assert objects(data.annotations["val"]) == wanted(VAL)
    assert data.division is None
    told = [line for line in caplog.messages if " images, " in line]
    assert "3 images, 3 boxes, 2 classes" in told[0]
    assert "2 images, 2 boxes, 2 classes" in told[1]


def label_studio_coco(root: Path) -> None:
    layouts.coco(root / "result.json", root / "images", TRAIN, prefix="images\\1a2b3c4d-", first=0)
    content = (root / "result.json").read_text()
    content = content.replace("a b.jpg", "A%20B.jpg").replace("m\\u00fcnze", "mu\\u0308nze")
    (root / "result.json").write_text(content)


def cvat_coco(root: Path) -> None:
    layouts.coco(root / "annotations/instances_default.json", root / "images/default", TRAIN)
    content = json.loads((root / "annotations/instances_default.json").read_text())
    for image in content["images"]:
        image["width"] = image["height"] = 0
    (root / "annotations/instances_default.json").write_text(json.dumps(content))


def cvat_voc(root: Path) -> None:
    layouts.voc(root / "Annotations", root / "JPEGImages", TRAIN)
    (root / "ImageSets/Main").mkdir(parents=True)
    names = (f'"{stem}.jpg" -1' if " " in stem else f"{stem}.jpg  1" for stem in TRAIN)
    (root / "ImageSets/Main/default.txt").write_text("\n".join(names))
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncat:::\n")


def label_studio_voc(root: Path) -> None:
    layouts.voc(root / "Annotations", root / "images", TRAIN)


def xml_beside(root: Path) -> None:
    layouts.voc(root, root, TRAIN)


def test_pictures_without_xml_are_told(tmp_path: Path) -> None:
    xml_beside(tmp_path / "beside")
    label_studio_voc(tmp_path / "apart")
    voc_subfolders(tmp_path / "parts")  # the pictures of one part have their XML in the folder of the other
    for picture in (tmp_path / "parts/images").glob("*/*"):
        picture.rename(tmp_path / "parts/images" / picture.name)
    for folder in ("train", "val"):
        (tmp_path / "parts/images" / folder).rmdir()
    told = {
        name: [
            problem.cause
            for problem in folder_data(str(tmp_path / name)).read("train").problems
            if "no XML" in problem.cause
        ]
        for name in ("beside", "apart", "parts")
    }
    assert told == {"beside": [], "apart": [], "parts": []}
    for folder in ("beside", "apart/images"):
        save_picture(tmp_path / folder / "new.jpg")
        data = folder_data(str(tmp_path / folder.split("/")[0]))
        (told_of_new,) = (p.cause for p in data.read("train").problems if "no XML" in p.cause)
        assert told_of_new.startswith("1 of 4 pictures")
        assert "(new.jpg)" in told_of_new


def label_studio_yolo(root: Path) -> None:
    layouts.yolo(root / "labels", root / "images", TRAIN)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}')


@pytest.mark.parametrize(
    "write", [label_studio_coco, cvat_coco, cvat_voc, label_studio_voc, xml_beside, label_studio_yolo]
)
def test_one_part_is_divided(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    data = folder_data(str(tmp_path), split_fractions=[0.6, 0.4])
    data.setup("fit")
    assert data.classes == CLASSES
    train, val = (objects(data.annotations[part]) for part in ("train", "val"))
    assert train
    assert val
    assert not train.keys() & val.keys()
    assert train | val == wanted(TRAIN)
    assert data.division is not None
    with pytest.raises(DataError, match=r"no part to validate on .* data\.split=auto"):
        folder_data(str(tmp_path), split=None)


def test_two_layouts_none_and_one_further_down(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set was recognised; looked for COCO"):
        folder_data(str(tmp_path))
    inner = tmp_path / "inner"
    coco_beside(inner)
    with pytest.raises(DataError, match=r"recognised, but in it: data\.root='.*inner'"):
        folder_data(str(tmp_path))
    voc_divided(inner)
    with pytest.raises(DataError, match=r"COCO JSON \(.*\) and Pascal VOC \(.*data\.layout=coco or voc"):
        folder_data(str(inner))
    data = folder_data(str(inner), layout="voc")
    assert objects(data.read("val")) == wanted(VAL)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train_a.json", "train_b.json"), r"2 COCO files for train \(train_a\.json, train_b\.json\)"),
        (("one.json", "two.json"), r"2 COCO files for train"),
    ],
)
def test_a_part_with_two_files_is_told(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in names:
        layouts.coco(tmp_path / name, tmp_path / "images", TRAIN)
    with pytest.raises(DataError, match=message):
        folder_data(str(tmp_path))


def test_yolo_without_names_and_with_wrong_lines(tmp_path: Path) -> None:
    yolo_plain(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"no names of the classes: add classes\.txt"):
        folder_data(str(tmp_path))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    label = tmp_path / "labels/train/a b.txt"
    for line, message in (
        ("2 0.5 0.5 0.1 0.1\r", r"line 1: class 2 is not among the 2"),
        ("0 40 25 8 5", r"line 1: numbers must be shares of width and height in 0\.\.1"),
        ("0 0.5 0.5 0.1", r"line 1: must have 5 numbers"),
        ("0 0.5 0.5 0.1 nan", r"line 1: numbers must be shares"),
        ("cat 0.5 0.5 0.1 0.1", r"line 1: must be numbers"),
    ):
        label.write_text(f"{line}\n1 0.5 0.5 0.5 0.5\n")
        with pytest.raises(DataError, match=message):
            folder_data(str(tmp_path)).setup("fit")
    data = folder_data(str(tmp_path), on_error="skip")
    data.setup("fit")
    assert data.annotations["train"].counts == {"annotations skipped": 1}
    assert len(objects(data.annotations["train"])["a b"]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nc: 3\nnames: [cat, dog]", r"data\.yaml: nc is 3, but names holds 2 names"),
        ("names: [cat, cat]", r"data\.yaml names 'cat' twice"),
        ("names: {0: cat, 2: dog}", r"data\.yaml: names must be numbered from 0 on without gaps, got 0, 2"),
        ("names: []", r"data\.yaml names no class"),
    ],
)
def test_wrong_names_of_yolo(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\n{line}\n")
    with pytest.raises(DataError, match=message):
        folder_data(str(tmp_path))


def test_labels_without_a_picture_are_told(tmp_path: Path) -> None:
    yolo_lists(tmp_path)  # the lists of two parts name pictures of one folder
    assert folder_data(str(tmp_path)).read("train").problems == ()
    (tmp_path / "labels/lost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (cause,) = (p.cause for p in folder_data(str(tmp_path)).read("train").problems)
    assert cause == "1 label without a picture (labels/lost.txt)"


def test_boxes_beside_polygons_are_boxes_and_told(tmp_path: Path) -> None:
    yolo_plain(tmp_path)
    (tmp_path / "labels/train/a b.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.3 0.1 0.3 0.5\n")
    train = folder_data(str(tmp_path)).read("train")
    assert objects(train)["a b"] == [("cat", 32, 15, 48, 35), ("dog", 8, 5, 24, 25)]
    assert [p.cause.split(" (")[0] for p in train.problems] == [
        "1 label file with polygons and lines of 4 numbers"
    ]


def test_lists_of_single_classes_are_one_part_together(tmp_path: Path) -> None:
    layouts.voc(tmp_path / "Annotations", tmp_path / "JPEGImages", {**TRAIN, **VAL})
    main = tmp_path / "ImageSets/Main"
    main.mkdir(parents=True)
    (main / "cat_train.txt").write_text("a b  1\nempty -1\n")
    (main / "dog_train.txt").write_text("a b  1\nmünze -1\n", encoding="utf-8")
    (main / "cat_val.txt").write_text("v1 -1\nv2  1\n")
    data = folder_data(str(tmp_path))
    assert objects(data.read("train")) == wanted(TRAIN)
    assert objects(data.read("val")) == wanted(VAL)
    (main / "val.txt").write_text("v2\n")  # a list of all classes is the part
    (main / "train.txt").write_text("münze\n", encoding="utf-8")
    data = folder_data(str(tmp_path))
    assert [list(objects(data.read(part))) for part in ("train", "val")] == [["münze"], ["v2"]]


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    yolo_plain(tmp_path)
    for label in (tmp_path / "labels/train").glob("*.txt"):
        label.unlink()
    with pytest.raises(ConfigError, match="has no train split, only val"):
        folder_data(str(tmp_path)).setup("fit")


def test_lists_of_yolo_do_not_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "set"
    yolo_lists(root)
    outside = save_picture(tmp_path / "outside.jpg")
    for name in (str(outside), "../outside.jpg", "images/../../outside.jpg"):
        (root / "train.txt").write_text(f"images/a b.jpg\n{name}\n")
        with pytest.raises(DataError, match="outside"):
            folder_data(str(root)).setup("fit")


def test_skipping_is_not_proposed_where_nothing_would_be_left(tmp_path: Path) -> None:
    coco_beside(tmp_path)
    for stem in ("a b", "münze"):
        (tmp_path / f"images/{stem}.jpg").unlink()
    with pytest.raises(DataError, match=r"'a b\.jpg' .*2 of 3 images are like that; data\.on_error=skip"):
        folder_data(str(tmp_path)).setup("fit")
    (tmp_path / "images/empty.jpg").rename(tmp_path / "images/other.jpg")
    with pytest.raises(DataError, match=r"no file 'a b\.jpg'.*nor with other case.*\(so are all 3 images\)"):
        folder_data(str(tmp_path)).setup("fit")


def test_boxes_are_made_of_outlines_when_asked(tmp_path: Path) -> None:
    from pycocotools import mask

    coco_beside(tmp_path)
    content = json.loads((tmp_path / "train.json").read_text())
    polygon, code, coded = content["annotations"]
    x, y, width, height = polygon.pop("bbox")
    polygon["segmentation"] = [[x, y + 1, x + width, y, x + width, y + height]]
    pixels = np.zeros((layouts.HEIGHT, layouts.WIDTH), dtype=np.uint8, order="F")
    x, y, width, height = code.pop("bbox")
    pixels[y : y + height, x : x + width] = 1
    code["segmentation"] = {**mask.encode(pixels), "counts": mask.encode(pixels)["counts"].decode()}
    x, y, width, height = coded["bbox"]
    coded["bbox"], coded["segmentation"] = [], [[x, y, x + width, y, x + width, y + height]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"segmentation and no bbox: data\.boxes_from_segmentation=true"):
        folder_data(str(tmp_path)).setup("fit")
    data = folder_data(str(tmp_path), boxes_from_segmentation=True)
    assert objects(data.read("train")) == wanted(TRAIN)


def test_classes_of_validation_are_those_of_training_by_name(tmp_path: Path) -> None:
    voc_two_roots(tmp_path)
    save_picture(tmp_path / "val/images/w.jpg", 80, 50)
    xml = (tmp_path / "val/Annotations/v1.xml").read_text()
    (tmp_path / "val/Annotations/w.xml").write_text(xml.replace("dog", "cow"))
    with pytest.raises(DataError, match="class 'cow' is not among the 2 classes"):
        folder_data(str(tmp_path)).setup("fit")

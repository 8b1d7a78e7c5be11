import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest

from defeat.data import read_coco
from defeat.errors import ConfigError, DataError
from tests.helpers.data_sets import save_picture


def test_sound_file(coco, caplog) -> None:
    data = read_coco(*coco.write())
    assert data.classes == ("dog", "cat")  # sorted by id, not by place
    assert data.class_ids == (3, 18)
    assert [record.image_id for record in data.records] == [7, 900, 31]
    assert [record.path.name for record in data.records] == ["a.jpg", "b.png", "c.jpg"]
    first, second, third = data.records
    assert first.boxes.tolist() == [[10.5, 5, 30.5, 15], [3, 4, 8, 10]]
    assert first.labels.tolist() == [1, 2]
    assert first.area.tolist() == [111, 30]  # the file's own; width times height where it gives none
    assert second.ignore.tolist() == [False, True]
    assert second.area.tolist() == [450.5, 2000]
    assert third.boxes.shape == (0, 4)
    assert (third.width, third.height) == (60, 40)
    types = [column.dtype for column in (third.boxes, third.labels, third.ignore, third.area)]
    assert types == [np.float32, np.int64, np.bool_, np.float32]
    assert data.counts == {}
    assert data.source == str(coco.file)
    assert not caplog.records


def test_labels_follow_the_classes_asked_for(coco) -> None:
    data = read_coco(*coco.write(), classes=["cat", "zebra", "dog", "owl"])
    assert data.classes == ("cat", "zebra", "dog", "owl")
    assert data.class_ids == (18, 19, 3, 20)  # classes that the file does not list get free ids
    assert data.records[0].labels.tolist() == [3, 1]


def test_paths_may_start_from_a_root(coco) -> None:
    coco.write()
    data = read_coco("instances.json", "images", root=coco.root)
    assert data.records[0].path == coco.images / "a.jpg"


def test_images_may_lie_in_folders(coco) -> None:
    save_picture(coco.images / "deep" / "er" / "x.png")
    coco.content["images"][0]["file_name"] = "deep/er/x.png"
    assert read_coco(*coco.write()).records[0].path == coco.images / "deep" / "er" / "x.png"


def test_names_spelt_otherwise_are_counted_and_said_once(coco, caplog) -> None:
    coco.content["images"][0]["file_name"] = "images\\A.JPG"
    coco.content["images"][1]["file_name"] = "b%2Epng"
    data = read_coco(*coco.write())
    assert [record.path.name for record in data.records] == ["a.jpg", "b.png", "c.jpg"]
    assert data.counts == {"files found by another spelling of their name": 2}
    assert len(caplog.records) == 1
    coco.content["images"][1]["file_name"] = "C.jpg"  # a file that another record names
    with pytest.raises(DataError, match=r"images\[1\] \(id 900\): no file 'C\.jpg'"):
        read_coco(*coco.write())


def test_bad_boxes_are_reported_in_one_line(coco, caplog) -> None:
    for box in ([50, 30, 20, 5], [1, 1, 0, 5], [1, 1, -3, 5], [70, 1, 5, 5]):
        coco.content["annotations"].append({"id": 1, "image_id": 31, "category_id": 3, "bbox": box})
    with caplog.at_level(logging.WARNING):
        data = read_coco(*coco.write())
    assert data.counts == {"boxes clipped": 1, "degenerate boxes dropped": 2, "boxes outside dropped": 1}
    assert data.records[2].boxes.tolist() == [[50, 30, 60, 35]]
    assert data.records[2].area.tolist() == [50]
    assert [record.getMessage() for record in caplog.records] == [
        f"{coco.file}: 1 box clipped, 1 box outside dropped, 2 degenerate boxes dropped"
    ]


WRONG_FIELDS = [
    (
        "annotations",
        "bbox",
        [1, 2, math.nan, 4],
        "bbox must be 4 finite numbers x, y, width, height, got [1, 2, nan, 4]",
    ),
    ("annotations", "bbox", [1, 2, math.inf, 4], "got [1, 2, inf, 4]"),
    ("annotations", "bbox", [1, 2, 10**400, 4], "bbox must be 4 finite numbers"),
    ("annotations", "bbox", [1, 2, "3", 4], "got [1, 2, '3', 4]"),
    ("annotations", "bbox", [1, 2, True, 4], "bbox must be 4 finite numbers"),
    ("annotations", "bbox", [1, 2, 3], "got [1, 2, 3]"),
    ("annotations", "bbox", "1 2 3 4", "got '1 2 3 4'"),
    ("annotations", "bbox", None, "got None"),
    ("annotations", "bbox", ..., "field 'bbox' is missing"),
    ("annotations", "image_id", ..., "field 'image_id' is missing"),
    ("annotations", "image_id", "7", "image_id must be a whole number, got '7'"),
    ("annotations", "image_id", 8, "image_id 8 is not among the file's images"),
    ("annotations", "category_id", ..., "field 'category_id' is missing"),
    ("annotations", "category_id", 4, "category_id 4 is not among the file's categories"),
    ("annotations", "category_id", 3.5, "category_id must be a whole number, got 3.5"),
    ("annotations", "category_id", math.nan, "category_id must be a whole number, got nan"),
    ("annotations", "iscrowd", 2, "iscrowd must be 0 or 1, got 2"),
    ("annotations", "iscrowd", "1", "iscrowd must be 0 or 1, got '1'"),
    ("annotations", "area", -1, "area must be a finite number of at least 0, got -1"),
    ("annotations", "area", math.inf, "got inf"),
    ("annotations", "area", "9", "got '9'"),
    ("images", "id", ..., "field 'id' is missing"),
    ("images", "id", "900", "id must be a whole number, got '900'"),
    ("images", "id", True, "id must be a whole number, got True"),
    ("images", "width", ..., "field 'width' is missing"),
    ("images", "width", 0, "width must be a whole number of at least 1, got 0"),
    ("images", "height", -40, "height must be a whole number of at least 1, got -40"),
    ("images", "height", "40", "height must be a whole number of at least 1, got '40'"),
    ("images", "height", math.nan, "got nan"),
    ("images", "width", math.inf, "got inf"),
    ("images", "width", 10**400, "width must be a whole number"),
    ("images", "file_name", ..., "field 'file_name' is missing"),
    ("images", "file_name", 5, "file_name must be a text that is not empty, got 5"),
    ("images", "file_name", "", "file_name must be a text that is not empty, got ''"),
    ("images", "file_name", "gone.jpg", "no file 'gone.jpg'"),
    ("images", "file_name", "../instances.json", "'../instances.json' leads outside its root"),
    ("images", "file_name", "/etc/passwd", "'/etc/passwd' leads outside its root"),
    ("images", "file_name", "link.jpg", "through a link"),
]


def break_record(coco, group: str, name: str, value: object) -> str:
    """Break the second record; returns how messages call it."""
    (coco.images / "link.jpg").symlink_to(coco.file)
    record = coco.content[group][1]
    if value is ...:
        del record[name]
    else:
        record[name] = value
    return f"{group}[1] (id {record['id']!r})" if "id" in record else f"{group}[1]"


@pytest.mark.parametrize(("group", "name", "value", "message"), WRONG_FIELDS)
def test_a_wrong_field_names_file_and_record(coco, caplog, group, name, value, message) -> None:
    where = break_record(coco, group, name, value)
    with pytest.raises(DataError) as caught:
        read_coco(*coco.write())
    assert str(caught.value).startswith(f"{coco.file}: {where}: ")
    assert message in str(caught.value)
    data = read_coco(*coco.write(), on_error="skip")
    assert len(caplog.records) == 1
    assert f"the first one skipped: {coco.file}: {where}: " in caplog.text
    assert message in caplog.text
    if group == "annotations":
        assert data.counts == {"annotations skipped": 1}
        assert [len(record.boxes) for record in data.records] == [1, 2, 0]
    else:
        assert data.counts["images skipped"] == 1
        assert [record.image_id for record in data.records] == [7, 31]
        assert [len(record.boxes) for record in data.records] == [2, 0]


def test_boxes_of_a_skipped_image_are_not_counted_as_faults(coco) -> None:
    coco.content["images"][1]["file_name"] = "gone.jpg"
    assert read_coco(*coco.write(), on_error="skip").counts == {"images skipped": 1}


def test_unknown_class(coco) -> None:
    coco.write()
    with pytest.raises(DataError) as caught:
        read_coco(coco.file, coco.images, classes=["dog", "horse"])
    where = f"{coco.file}: annotations[0] (id 930)"
    message = "class 'cat' is not among the 2 classes asked for (dog, horse)"
    assert str(caught.value).startswith(f"{where}: {message}")
    skipped = read_coco(coco.file, coco.images, classes=["dog", "horse"], on_error="skip")
    assert skipped.counts == {"annotations skipped": 2}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("images", {"id": 7}, "images[2] (id 7): id 7 is given twice"),
        ("categories", {"id": 18}, "categories[1] (id 18): id 18 is given twice"),
        ("categories", {"name": "cat"}, "categories[1] (id 3): name 'cat' is given twice"),
        ("categories", {"name": ""}, "categories[1] (id 3): name must be a text"),
        ("categories", {"id": "x"}, "categories[1] (id 'x'): id must be a whole number"),
    ],
)
def test_what_makes_the_file_ambiguous_is_never_skipped(coco, on_error, group, change, message) -> None:
    coco.content[group][-1].update(change)
    with pytest.raises(DataError) as caught:
        read_coco(*coco.write(), on_error=on_error)
    assert str(caught.value).startswith(f"{coco.file}: {message}")


def test_a_category_named_like_another_is_left_out_if_it_owns_nothing(coco) -> None:
    coco.content["categories"].insert(0, {"id": 0, "name": "dog", "supercategory": "none"})
    for _ in range(2):
        data = read_coco(*coco.write())
        assert (data.classes, data.class_ids) == (("dog", "cat"), (3, 18))
        assert data.records[0].labels.tolist() == [1, 2]
        assert data.counts == {"categories left out, without annotations and named like another": 1}
        coco.content["categories"].reverse()


def test_ids_written_differently_are_the_same_id(coco) -> None:
    coco.content["images"][2]["id"] = 7.0
    with pytest.raises(DataError, match=r"images\[2\] \(id 7\.0\): id 7 is given twice"):
        read_coco(*coco.write(), on_error="skip")


def test_a_key_given_twice_is_no_choice_of_ours(coco) -> None:
    file, images = coco.write()
    text = file.read_text().replace('"image_id": 7', '"image_id": 900, "image_id": 7', 1)
    file.write_text(text)
    with pytest.raises(DataError, match=r"key 'image_id' is given twice in one object \(id 931\)"):
        read_coco(file, images, on_error="skip")


@pytest.mark.parametrize("name", ["a" * 5000, "cat\nand dog", "\x1b[31mred"])
def test_names_that_fit_no_line_are_cut_and_escaped(coco, name) -> None:
    coco.content["categories"][0]["name"] = name
    with pytest.raises(DataError) as caught:
        read_coco(*coco.write(), classes=["dog", name + "s"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [..., {}, None, "text"])
def test_missing_lists(coco, key, value) -> None:
    coco.content[key] = value
    if value is ...:
        del coco.content[key]
    with pytest.raises(DataError, match=f"must hold a list '{key}'"):
        read_coco(*coco.write())


@pytest.mark.parametrize("item", [None, 5, "text", [1]])
def test_records_that_are_no_objects(coco, item) -> None:
    for group in ("images", "annotations", "categories"):
        sound = coco.content[group][-1]
        coco.content[group][-1] = item
        with pytest.raises(DataError, match=rf"{group}\[\d\]: must be an object"):
            read_coco(*coco.write())
        coco.content[group][-1] = sound


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"images": [', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[]", "must hold an object"),
        (b"null", "must hold an object"),
        (b'{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
    ],
)
def test_files_that_are_no_coco(coco, text, message) -> None:
    coco.file.write_bytes(text)
    with pytest.raises(DataError) as caught:
        read_coco(coco.file, coco.images)
    assert str(caught.value).startswith(f"{coco.file}: ")
    assert message in str(caught.value)


def test_missing_file_and_folder(coco, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be opened: No such file"):
        read_coco(tmp_path / "none.json", coco.images)
    with pytest.raises(DataError, match=r"image folder .*nowhere does not exist"):
        read_coco(coco.write()[0], tmp_path / "nowhere")


def test_what_tools_write_differently_is_understood(coco) -> None:
    coco.content["images"][0].update(width=60.0, height=40.0)
    coco.content["annotations"][0].update(iscrowd=True, area=None, segmentation=[[1, 2, 3, 4, 5, 6]])
    coco.content["annotations"][2].update(segmentation={"counts": [1, 2], "size": [40, 60]})
    coco.file.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco.content).encode())
    data = read_coco(coco.file, coco.images)
    assert (data.records[0].width, data.records[0].height) == (60, 40)
    assert data.records[1].ignore.tolist() == [True, True]
    assert data.records[1].area.tolist() == [600, 2000]


def test_no_images_is_an_empty_data_set(coco) -> None:
    coco.content.update(images=[], annotations=[])
    assert list(read_coco(*coco.write()).records) == []


@pytest.mark.parametrize("classes", [[], "dog", ["dog", "dog"], [1]])
def test_classes_must_make_sense(coco, classes) -> None:
    with pytest.raises(ConfigError, match="classes"):
        read_coco(*coco.write(), classes=classes)


@pytest.mark.parametrize("paths", [(True, "x"), (None, "x"), ("x", 5), (["x"], None)])
def test_paths_must_be_paths(tmp_path: Path, paths) -> None:
    with pytest.raises(ConfigError, match="must be a path, got"):
        read_coco(*paths, root=tmp_path)


def test_on_error_must_be_known(coco) -> None:
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        read_coco(*coco.write(), on_error="ignore")


def test_annotations_alone_need_no_images_and_still_refuse_paths_that_leave(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "a/b.jpg", "width": 20, "height": 10}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    file = tmp_path / "gt.json"
    file.write_text(json.dumps(content))
    read = read_coco(file, None)
    assert [record.image_id for record in read.records] == [7]
    content["images"][0]["file_name"] = "../b.jpg"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="leads outside its root"):
        read_coco(file, None)

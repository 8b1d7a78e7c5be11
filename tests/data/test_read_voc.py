import logging

import pytest

from defeat.data import read_image, read_voc
from defeat.errors import ConfigError, DataError
from tests.helpers.data_sets import VocFiles, save_picture, voc_object


def test_sound_root(voc) -> None:
    voc.add("000012", voc_object("dog", 1, 1, 60, 40), voc_object("cat", 11, 6, 30, 20, difficult=1))
    voc.add("000007")
    data = read_voc(voc.root, "train")
    assert data.classes == ("cat", "dog")
    assert data.class_ids == (1, 2)
    first, second = data.records
    assert (first.image_id, second.image_id) == ("000012", "000007")
    assert first.boxes.tolist() == [
        [0, 0, 60, 40],
        [10, 5, 30, 20],
    ]  # 1-based, inclusive -> 0-based, exclusive
    assert first.labels.tolist() == [2, 1]
    assert first.ignore.tolist() == [False, True]
    assert first.area.tolist() == [2400, 300]
    assert second.boxes.shape == (0, 4)
    assert first.path == voc.root / "JPEGImages" / "000012.jpg"
    assert data.counts == {}


def test_labels_follow_the_classes_asked_for(voc) -> None:
    voc.add("a", voc_object("dog", 1, 1, 9, 9), voc_object("cat", 1, 1, 9, 9))
    data = read_voc(voc.root, "train", classes=["dog", "bird", "cat"])
    assert data.classes == ("dog", "bird", "cat")
    assert data.records[0].labels.tolist() == [1, 3]


def test_a_second_column_is_not_read_and_every_line_counts(voc) -> None:
    for stem, mark in (("a", "-1"), ("b", " 1"), ("c", " 0")):
        voc.add(stem, line=f"{stem} {mark}")
    voc.lines.append("  ")
    voc.write_list("cat_train")
    data = read_voc(voc.root, "cat_train", classes=["cat"])
    assert [record.image_id for record in data.records] == ["a", "b", "c"]


@pytest.mark.parametrize("names", [["IMG 001", "IMG 002"], ["IMG 0", "IMG 1"], ["IMG", "my -1"]])
def test_names_may_hold_blanks(voc, names) -> None:
    voc.add("IMG")  # what the names were if they ended at a blank
    voc.lines.clear()
    for stem in names:
        voc.add(stem, voc_object("cat", 1, 1, 9, 9), line=f"{stem}  ")
    records = read_voc(voc.root, "train").records
    assert [record.image_id for record in records] == names
    assert [record.path.stem for record in records] == names


@pytest.mark.parametrize("line", ["a.jpg", "a.xml", "A", "JPEGImages/a.jpg", "JPEGImages\\\\a.jpg"])
def test_lists_may_name_the_files(voc, line) -> None:
    voc.add("a", voc_object("cat", 1, 1, 9, 9), line=line)
    (record,) = read_voc(voc.root, "train").records
    assert (record.path.name, len(record.boxes)) == ("a.jpg", 1)
    voc.lines.append("a")
    voc.write_list("train")
    with pytest.raises(DataError, match=r"'a' stands twice|leads? outside|no file"):
        read_voc(voc.root, "train")


def test_roots_are_joined_each_with_its_own_list(voc, tmp_path) -> None:
    second = VocFiles(tmp_path / "VOC2012")
    voc.add("000001", voc_object("dog", 1, 1, 9, 9))
    second.add("2008_000001", voc_object("bird", 1, 1, 9, 9))
    second.write_list("trainval")
    for roots, start in (([voc.root, second.root], "."), (["VOC2007", "VOC2012"], tmp_path)):
        data = read_voc(roots, ["train", "trainval"], root=start)
        assert [record.image_id for record in data.records] == ["000001", "2008_000001"]
        assert data.classes == ("bird", "dog")
        assert data.records[1].path.parent == second.root / "JPEGImages"
    assert len(read_voc([voc.root, second.root], "train").records) == 2


def test_a_name_in_two_roots_names_both(voc, tmp_path) -> None:
    second = VocFiles(tmp_path / "VOC2012")
    voc.add("a")
    second.add("a")
    second.add("b")
    with pytest.raises(
        DataError, match=r"'a' stands twice: in .*VOC2007.*train\.txt and in .*VOC2012.*train\.txt"
    ):
        read_voc([voc.root, second.root], "train", on_error="skip")
    second.lines.remove("a")
    second.write_list("train")  # the file is still in both, but only one is asked for
    assert len(read_voc([voc.root, second.root], "train", classes=["x"]).records) == 2


@pytest.mark.parametrize("name", ["a.JPG", "A.jpg", "a.Jpeg", "a.png", "a.BMP"])
def test_pictures_are_found_in_any_case_and_format(voc, name) -> None:
    voc.add("a", picture="x.jpg", filename="a.jpg")
    (voc.root / "JPEGImages" / "x.jpg").rename(voc.root / "JPEGImages" / name)
    assert read_voc(voc.root, "train", classes=["x"]).records[0].path.name == name


def test_the_best_match_wins_and_other_files_are_no_pictures(voc) -> None:
    voc.add("a", picture="A.jpg")
    for name in ("a.png", "a.bmp"):
        save_picture(voc.root / "JPEGImages" / name)
    (voc.root / "JPEGImages" / "a.txt").write_text("notes")
    assert read_voc(voc.root, "train", classes=["x"]).records[0].path.name == "a.png"


def test_filename_helps_where_the_name_of_the_xml_does_not(voc) -> None:
    voc.add("a", picture="IMG_5.jpg", filename="IMG_5.jpg")
    assert read_voc(voc.root, "train", classes=["x"]).records[0].path.name == "IMG_5.jpg"


def test_a_filename_copied_from_another_image_does_not_mislead(voc) -> None:
    voc.add("a")
    voc.add("b", filename="a.jpg")
    assert [record.path.name for record in read_voc(voc.root, "train", classes=["x"]).records] == [
        "a.jpg",
        "b.jpg",
    ]


@pytest.mark.parametrize("filename", ["C:\\\\Users\\\\me\\\\a.jpg", "/home/me/a.jpg", "../a.jpg"])
def test_a_filename_of_another_machine(voc, filename, caplog) -> None:
    voc.add("a", filename=filename)
    assert read_voc(voc.root, "train", classes=["x"]).records[0].path.name == "a.jpg"
    assert not caplog.records  # it is not looked at where the picture is called like the XML file
    voc.add("b", picture="c.jpg", filename=filename.replace("a.jpg", "C.jpg"))
    data = read_voc(voc.root, "train", classes=["x"])
    assert data.records[1].path == voc.root / "JPEGImages" / "c.jpg"
    assert data.counts == {"files found by another spelling of their name": 1}
    assert "'c.jpg', which is called" in caplog.text


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>0</width><height>40</height></size>",
    ],
)
def test_an_unknown_size_is_that_of_the_picture(voc, size) -> None:
    voc.add("a", voc_object("cat", 1, 1, 99, 99), size=size)
    data = read_voc(voc.root, "train")
    record = data.records[0]
    assert (record.width, record.height) == (60, 40)
    assert record.boxes.tolist() == [[0, 0, 60, 40]]
    assert data.counts == {"boxes clipped": 1}
    assert read_image(record.path, (record.width, record.height)).shape == (3, 40, 60)


def test_bad_boxes_are_reported_in_one_line(voc, caplog) -> None:
    boxes = [
        (50, 30, 70, 35),
        (5, 5, 5, 9),
        (5, 9, 8, 9),
        (9, 5, 5, 9),
        (70, 1, 75, 5),
        (0, 0, 7, 7),
        (1.5, 2, 9.5, 8),
    ]
    voc.add("a", *(voc_object("cat", *box) for box in boxes))
    with caplog.at_level(logging.WARNING):
        data = read_voc(voc.root, "train")
    assert data.counts == {"boxes clipped": 2, "degenerate boxes dropped": 3, "boxes outside dropped": 1}
    assert data.records[0].boxes.tolist() == [[49, 29, 60, 35], [0, 0, 7, 7], [0.5, 1, 9.5, 8]]
    assert len(caplog.records) == 1
    assert (
        f"{voc.root} (train): 2 boxes clipped, 1 box outside dropped, 3 degenerate boxes dropped"
        in caplog.text
    )


WRONG_OBJECTS = [
    ("<object><bndbox/></object>", "object[1]: field 'name' is missing"),
    ("<object><name> </name></object>", "object[1]: field 'name' is missing"),
    ("<object><name>cat</name></object>", "object[1] (cat): field 'bndbox' is missing"),
    (
        "<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>",
        "object[1] (cat): field 'ymin' is missing",
    ),
    (("cat", "one", 1, 9, 9), "object[1] (cat): xmin must be a finite number, got 'one'"),
    (("cat", 1, "", 9, 9), "object[1] (cat): ymin must be a finite number, got ''"),
    (("cat", 1, 1, "nan", 9), "object[1] (cat): xmax must be a finite number, got 'nan'"),
    (("cat", 1, 1, 9, "inf"), "object[1] (cat): ymax must be a finite number, got 'inf'"),
    (("cat", 1, 1, 9, "1e999"), "object[1] (cat): ymax must be a finite number, got '1e999'"),
    (
        ("zebra", 1, 1, 9, 9),
        "object[1]: class 'zebra' is not among the 2 classes asked for (cat, dog)",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_OBJECTS)
def test_a_wrong_object_names_file_and_object(voc, caplog, wrong, message) -> None:
    wrong = wrong if isinstance(wrong, str) else voc_object(*wrong)
    xml = voc.add("a", voc_object("cat", 1, 1, 9, 9), wrong, voc_object("dog", 1, 1, 9, 9))
    with pytest.raises(DataError) as caught:
        read_voc(voc.root, "train", classes=["cat", "dog"])
    assert str(caught.value).startswith(f"{xml}: {message}")
    data = read_voc(voc.root, "train", classes=["cat", "dog"], on_error="skip")
    assert data.counts == {"annotations skipped": 1}
    assert data.records[0].labels.tolist() == [1, 2]
    assert f"{xml}: {message}" in caplog.text


@pytest.mark.parametrize(
    ("twice", "message"),
    [
        ("<bndbox/><bndbox/>", "object[0] (cat): field 'bndbox' is given 2 times"),
        ("<name>dog</name>", "object[0] (cat): field 'name' is given 2 times"),
        ("<difficult>1</difficult>", "object[0] (cat): field 'difficult' is given 2 times"),
    ],
)
def test_a_field_given_twice_is_no_choice_of_ours(voc, twice, message) -> None:
    xml = voc.add("a", voc_object("cat", 1, 1, 9, 9).replace("</object>", f"{twice}</object>"))
    with pytest.raises(DataError) as caught:
        read_voc(voc.root, "train")
    if "bndbox" in twice:
        message = message.replace("2 times", "3 times")
    assert str(caught.value).startswith(f"{xml}: {message}")


@pytest.mark.parametrize("wrapped", ["<objects>{}</objects>", "<x xmlns='y'>{}</x>", "<folder>{}</folder>"])
def test_objects_elsewhere_are_not_lost_without_a_word(voc, wrapped) -> None:
    xml = voc.add("a", wrapped.format(voc_object("cat", 1, 1, 9, 9)), voc_object("dog", 1, 1, 9, 9))
    with pytest.raises(DataError) as caught:
        read_voc(voc.root, "train")
    assert str(caught.value).startswith(f"{xml}: 1 'object' elements lie elsewhere than directly in")


def test_difficult_must_be_a_flag(voc) -> None:
    xml = voc.add("a", voc_object("cat", 1, 1, 9, 9, difficult="yes"))
    with pytest.raises(DataError) as caught:
        read_voc(voc.root, "train")
    assert str(caught.value).startswith(f"{xml}: object[0] (cat): difficult must be 0 or 1, got 'yes'")
    voc.lines.clear()
    voc.add("b", voc_object("cat", 1, 1, 9, 9, difficult=""))
    assert read_voc(voc.root, "train").records[0].ignore.tolist() == [False]


WRONG_FILES = [
    ("", "is not valid XML"),
    ("<annotation>", "is not valid XML"),
    ('<?xml version="1.0" encoding="no-such"?><annotation/>', "is not valid XML"),
    ("<html/>", "must hold an 'annotation' element, got 'html'"),
    ("<!DOCTYPE annotation><annotation/>", "is refused"),
    (
        "<annotation><size><width>-6</width><height>4</height></size></annotation>",
        "size must be whole numbers",
    ),
    ("<annotation><size><width>6.5</width><height>4</height></size></annotation>", "got 6.5x4"),
    (
        "<annotation><size><width>wide</width><height>4</height></size></annotation>",
        "width must be a finite number",
    ),
]


@pytest.mark.parametrize(("content", "message"), WRONG_FILES)
def test_a_wrong_file_is_named(voc, caplog, content, message) -> None:
    voc.add("a")
    xml = voc.add("b")
    xml.write_text(content)
    with pytest.raises(DataError) as caught:
        read_voc(voc.root, "train", classes=["cat"])
    assert str(caught.value).startswith(f"{xml}: ")
    assert message in str(caught.value)
    data = read_voc(voc.root, "train", classes=["cat"], on_error="skip")
    assert [record.image_id for record in data.records] == ["a"]
    assert data.counts == {"images skipped": 1}
    assert str(xml) in caplog.text


def test_missing_files_are_named(voc) -> None:
    xml = voc.add("a", picture=None)
    with pytest.raises(DataError) as caught:
        read_voc(voc.root, "train", classes=["cat"])
    assert str(caught.value).startswith(f"{xml}: no file 'a.jpg' in {voc.root / 'JPEGImages'}")
    voc.add("a", picture=None, filename=None)
    voc.lines.pop()
    voc.write_list("train")
    with pytest.raises(DataError, match=r"a\.xml: no picture 'a' \(\.jpg, \.jpeg, "):
        read_voc(voc.root, "train", classes=["cat"])
    xml.unlink()
    with pytest.raises(DataError, match=r"a\.xml: no file 'a\.xml'"):
        read_voc(voc.root, "train", classes=["cat"])


@pytest.mark.parametrize("linked", ["JPEGImages/a.jpg", "Annotations/a.xml"])
def test_a_link_out_is_refused(voc, tmp_path, linked) -> None:
    voc.add("a")
    (voc.root / linked).rename(tmp_path / "elsewhere")
    (voc.root / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"a\.xml: path .* through a link"):
        read_voc(voc.root, "train", classes=["cat"])


@pytest.mark.parametrize("stem", ["../a", "/a"])
def test_a_list_cannot_lead_outside(voc, stem) -> None:
    voc.add("a")
    voc.lines.append(stem)
    voc.write_list("train")
    with pytest.raises(DataError, match="leads outside"):
        read_voc(voc.root, "train", classes=["cat"])


def test_an_undecodable_picture_of_unknown_size(voc) -> None:
    xml = voc.add("a", size="")
    (voc.root / "JPEGImages" / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError) as caught:
        read_voc(voc.root, "train", classes=["cat"])
    assert str(caught.value).startswith(f"{xml}: image {voc.root / 'JPEGImages' / 'a.jpg'} cannot be decoded")


def test_wrong_roots_and_lists(voc, tmp_path) -> None:
    voc.add("a")
    with pytest.raises(DataError, match=r"val\.txt cannot be read"):
        read_voc(voc.root, "val")
    with pytest.raises(DataError, match="nowhere has no folder Annotations"):
        read_voc(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="holds no object"):
        read_voc(voc.root, "train")
    for roots, names in (
        ([], "train"),
        ([voc.root], ["train", "val"]),
        (None, "train"),
        ([5], "train"),
        ("x", True),
    ):
        with pytest.raises(ConfigError):
            read_voc(roots, names)

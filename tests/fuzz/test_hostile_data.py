"""Images and annotations made to do harm: bombs, files that never end, ways out of the root."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defeat.data import read_coco, read_image, read_voc
from defeat.detectors import read_weights
from defeat.errors import DefeatError
from defeat.evaluation import read_results
from defeat.types import Annotations, Record
from tests.helpers.limits import bounded, forbid_network
from tests.helpers.trials import refused

COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4]}],
    "categories": [{"id": 3, "name": "cat"}],
}
TRUTH = Annotations(
    [Record(1, Path("a.jpg"), 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), *[np.zeros(0)] * 2)],
    ("a",),
    (1,),
    "a.json",
    {},
)
RESULT = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with bounded():
        yield


def raises(read: Callable[[], object], *parts: str) -> str:
    """Check that reading ends in an error of one line that has the parts."""
    with pytest.raises(DefeatError) as caught:
        read()
    return refused(caught.value, *parts)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A root with ``a.json`` and ``images/a.jpg``, and a file beside the folder of images."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a.jpg")
    Image.new("RGB", (60, 40)).save(tmp_path / "secret.jpg")
    return tmp_path


def read_changed(root: Path, group: str, **changed: object) -> Annotations:
    (root / "a.json").write_text(json.dumps({**COCO, group: [{**COCO[group][0], **changed}]}))
    return read_coco("a.json", "images", root=root)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation/>")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # Pillow only warns up to twice its limit, and users see no error then
def test_images_of_absurd_sizes(tmp_path: Path) -> None:
    Image.new("1", (9500, 9500)).save(tmp_path / "just_over.png")
    (tmp_path / "claimed.ppm").write_bytes(b"P6 100000 100000 255\n")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**31)
    for path in tmp_path.iterdir():
        raises(lambda path=path: read_image(path), str(path), "cannot be decoded: ")


# Files that are no files

TRAPS = ("pipe", "folder", "loop", "/dev/zero")


def trap(path: Path, kind: str) -> None:
    """Put what would be waited for, or would never end, in the place of a file."""
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case device:
            path.symlink_to(device)


@pytest.mark.parametrize("kind", TRAPS)
def test_files_that_would_be_waited_for_or_never_end(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "trap"
    trap(path, kind)
    raises(lambda: read_image(path), str(path))
    raises(lambda: read_coco(path, None), str(path))
    raises(lambda: read_results(path, TRUTH), str(path))
    raises(lambda: read_weights(path), str(path))


@pytest.mark.parametrize("kind", TRAPS)
def test_traps_in_data_sets_are_refused_before_training(kind: str, coco: Path) -> None:
    trap(coco / "images" / "trap.jpg", kind)
    where = "a.json: images[0] (id 7): "
    raises(lambda: read_changed(coco, "images", file_name="trap.jpg"), where, "'trap.jpg'")


@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("name", ["Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt"])
def test_traps_in_a_voc_folder(kind: str, name: str, voc: Path) -> None:
    trap(voc / name, kind)
    raises(lambda: read_voc(voc, "train", ["cat"]), "train.txt" if name.endswith("txt") else "a.xml: ")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "C:secret.jpg", "link.jpg", "up/secret.jpg", "a\0.jpg", "\ud800/a.jpg"]
)
def test_names_that_lead_out_of_the_root_or_nowhere(name: str, coco: Path) -> None:
    (coco / "images" / "link.jpg").symlink_to(coco / "secret.jpg")
    (coco / "images" / "up").symlink_to(coco)
    raises(lambda: read_changed(coco, "images", file_name=name), "a.json: images[0] (id 7): ")


def test_names_of_lists_that_no_file_can_have(voc: Path) -> None:
    for name in ("a\0b", "a" * 5000, "\ud800"):
        raises(lambda name=name: read_voc(voc, name, ["cat"]), "cannot be read")


# JSON


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 10**6,
        b'{"a":' * 10**6,
        b'{"images": [' + b"1" * 10**6 + b"]}",
        b'{"images": [], "annotations": [1], "annotations": [], "categories": []}',
        b"\0" * 1000,
    ],
    ids=["lists", "objects", "digits", "twins", "zeros"],
)
def test_json_made_to_break_its_readers(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    raises(lambda: read_coco(path, None), str(path))
    raises(lambda: read_results(path, TRUTH), str(path))


@pytest.mark.parametrize("number", ["1e400", "NaN", "1" + "0" * 4000, "9007199254740993"])
def test_numbers_beyond_all_others(number: str, coco: Path) -> None:
    for field in ("bbox", "image_id", "category_id", "area", "iscrowd"):
        value = [0, 0, "N", 5] if field == "bbox" else "N"
        content = {**COCO, "annotations": [{**COCO["annotations"][0], field: value}]}
        (coco / "a.json").write_text(json.dumps(content).replace('"N"', number))
        raises(lambda: read_coco("a.json", "images", root=coco), "annotations[0] (id 1): ", field)


def test_images_that_no_float_can_measure(coco: Path) -> None:
    for side in (2**24 + 1, 10**30):
        raises(lambda side=side: read_changed(coco, "images", width=side), "images[0] (id 7): width")


def test_many_classes_take_no_quadratic_time(coco: Path) -> None:
    names = [f"class {n}" for n in range(50_000)]
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    (coco / "a.json").write_text(json.dumps({**COCO, "categories": categories}))
    asked = [*(f"new {n}" for n in range(50_000)), "class 3"]
    assert len(set(read_coco("a.json", "images", asked, root=coco).class_ids)) == len(asked)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": True},  # equals 1 in Python
        {"bbox": [0, 0, 10**400, 5]},
        {"bbox": [1e308, 0, 1e308, 5]},  # ends at infinity
        {"score": [[0.5]] * 1000},
    ],
    ids=["bool", "digits", "infinite", "nested"],
)
def test_results_of_odd_values(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT, {**RESULT, **change}]))
    raises(lambda: read_results(path, TRUTH), f"{path}: entry 1: ")


def test_results_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([RESULT]).encode())
    assert len(read_results(path, TRUTH)[0]["boxes"]) == 1


# XML

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 30))
XML = {
    "billion laughs": f'<!DOCTYPE x [<!ENTITY l0 "lol">{LAUGHS}]><annotation>&l29;</annotation>',
    "external entity": '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///dev/zero">]><annotation>&f;</annotation>',
    "parameter entity": '<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]><annotation/>',
    "document type": '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/voc.dtd"><annotation/>',
    "seventeen megabytes": f"<annotation>{'<a/>' * (2**24 // 4 + 10)}</annotation>",
    "a side of 2**30": "<annotation><size><width>1073741824</width><height>4</height></size></annotation>",
}


@pytest.mark.parametrize("name", XML)
def test_xml_made_to_break_its_readers(name: str, voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_network(monkeypatch)
    path = voc / "Annotations" / "a.xml"
    path.write_text(XML[name])
    raises(lambda: read_voc(voc, "train", ["cat"]), f"{path}: ")


def test_xml_a_hundred_thousand_deep(voc: Path) -> None:
    (voc / "Annotations" / "a.xml").write_text(f"<annotation>{'<a>' * 10**5}{'</a>' * 10**5}</annotation>")
    assert len(read_voc(voc, "train", ["cat"]).records) == 1

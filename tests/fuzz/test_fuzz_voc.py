"""Pascal VOC folders with anything wrong: a data set whose every object is accounted for, or one line."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from hypothesis import strategies as st
from PIL import Image

from defeat.data import fingerprint, read_voc
from defeat.errors import DataError
from tests.helpers.mutations import NUMBERS, OTHERS, STRINGS, ByteChange, byte_changes, change_bytes
from tests.helpers.sound_data import check_pictures, check_records
from tests.helpers.trials import Tally, refused, sizes, try_inputs

SOUND = """<annotation><folder>VOC2007</folder><filename>{0}.jpg</filename>
<source><database>x</database></source>
<size><width>60</width><height>40</height><depth>3</depth></size><segmented>0</segmented>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>
<part><name>head</name><bndbox><xmin>4</xmin><ymin>4</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object>
<object><name>cat</name><bndbox><xmin>50</xmin><ymin>5</ymin><xmax>50</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""

BOMB = '<!DOCTYPE x [<!ENTITY a "' + "a" * 1000 + '">' + "".join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip

DEEP, NEST = "\ue001", "<deep>" * 30_000 + "</deep>" * 30_000

PROLOGUES = [
    "",
    "",
    "",
    '<?xml version="1.0" encoding="utf-16"?>',
    '<?xml version="1.0" encoding="zlib"?>',
    '<?xml version="9.9"?>',
    "<!DOCTYPE annotation>",
    '<!DOCTYPE x SYSTEM "file:///etc/passwd">',
    '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///dev/zero">]>',
    f"{BOMB}]>",
    "\ufeff",
    "<!-- x -->",
    "<?php x ?>",
]


class XmlChange(NamedTuple):
    kind: str
    node: int
    value: str


KINDS = ("text", "text", "text", "drop", "double", "tag", "wrap", "attribute", "swap", "empty", "deepen")

texts = st.sampled_from(
    [*STRINGS, *map(str, NUMBERS), *map(str, OTHERS[:4]), "1_0", "٣", "0x10", "1e1", " 5 "]
)
tags = st.sampled_from(
    ["object", "Object", "bndbox", "name", "x:object", "size", "annotation", "xmin", "width"]
)
xml_changes = st.lists(
    st.builds(XmlChange, st.sampled_from(KINDS), st.integers(0, 10**6), texts | tags), max_size=4
)
LINES = [
    "my dog",
    "my  dog",
    "my",
    "my%20dog",
    "B.jpg",
    "b.XML",
    "JPEGImages\\c.jpg",
    "my dog 1",
    "../my dog",
]
"""Names that may be meant for an image, and must never be read as another one."""

lines = st.sampled_from(
    [
        *LINES,
        "b",
        "a",
        "c",
        "gone",
        "b -1",
        "  ",
        "..",
        "../b",
        "/etc/passwd",
        "C:\\b",
        "b\0",
        "é",
        "a" * 300,
        "pipe",
    ]
) | st.sampled_from(STRINGS[:24]).filter(lambda text: "\ud800" not in text and "\ud83d" not in text)


class Case(NamedTuple):
    prologue: str
    xml: list[XmlChange]
    text: list[ByteChange]
    lines: list[str]
    list_bytes: list[ByteChange]
    skip: bool
    classes: list[str] | None


cases = st.builds(
    Case,
    st.sampled_from(PROLOGUES),
    xml_changes,
    st.just([]) | st.just([]) | st.just([]) | byte_changes,
    st.just([]) | st.just([]) | st.lists(lines, max_size=3),
    st.just([]) | st.just([]) | st.just([]) | st.just([]) | byte_changes,
    st.booleans(),
    st.none() | st.just(["dog", "cat"]) | st.just(["cat"]),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc") / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for stem in ("a", "b", "c", "my dog"):
        Image.new("RGB", (60, 40)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(SOUND.format(stem))
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        os.mkfifo(root / folder / f"pipe.{suffix}")
        (root / folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
        (root / folder / "up").symlink_to(root.parent)
    return root


@sizes(quick=75, full=1500)
def test_changed_voc_folders(examples: int, root: Path, tally: Tally) -> None:
    xml, list_file = root / "Annotations" / "b.xml", root / "ImageSets" / "Main" / "train.txt"

    def check(case: Case) -> str:
        changed = change_xml(ElementTree.fromstring(SOUND.format("b")), case.xml)
        text = case.prologue + ElementTree.tostring(changed, encoding="unicode").replace(DEEP, NEST)
        xml.write_bytes(change_bytes(text.encode("utf-8", "surrogatepass"), case.text))
        listed = "\n".join(["a", "b", *case.lines, "c"]).encode()
        list_file.write_bytes(change_bytes(listed, case.list_bytes))
        try:
            data = read_voc(root, "train", case.classes, "skip" if case.skip else "raise")
        except DataError as error:
            told = refused(error, str(root))
            assert ".xml: " in told or "...: " in told or "train.txt" in told or "holds no object" in told, (
                told
            )
            return told
        given_lines = [line for line in list_file.read_text("utf-8-sig").splitlines() if line.strip()]
        assert len(data.records) + data.counts.get("images skipped", 0) == len(given_lines)
        assert len({record.path for record in data.records}) == len(data.records)
        assert case.skip or not any("skipped" in reason for reason in data.counts)
        counts = data.counts
        left = ("annotations skipped", "degenerate boxes dropped", "boxes outside dropped")
        kept = sum(len(record.boxes) for record in data.records)
        stems = (record.path.stem for record in data.records)
        given = sum(count_objects(root / "Annotations" / f"{stem}.xml") for stem in stems)
        assert kept + sum(counts.get(reason, 0) for reason in left) == given
        assert len(fingerprint(data)) == 64
        check_records(data)
        check_pictures(data)
        return "read, some left out" if any("skipped" in reason for reason in counts) else "read"

    try_inputs("VOC XML and image sets", cases, check, examples, tally)


def count_objects(path: Path) -> int:
    """Every element that could be meant to be an object, wherever it stands."""
    found = ElementTree.fromstring(path.read_bytes())
    return sum(str(item.tag).rpartition("}")[2].lower() == "object" for item in found.iter())


def change_xml(root: ElementTree.Element, drawn: list[XmlChange]) -> ElementTree.Element:
    for kind, node, value in drawn:
        places = list(_places(root))
        if not places:
            break
        parent, position = places[node % len(places)]
        item = parent[position]
        match kind:
            case "text":
                item.text = value
            case "drop":
                parent.remove(item)
            case "double":
                parent.insert(position, copy.deepcopy(item))
            case "tag":
                item.tag = value if value.isidentifier() else "other"
            case "wrap":
                wrapper = ElementTree.Element(value if value.isidentifier() else "wrapper")
                wrapper.append(item)
                parent[position] = wrapper
            case "attribute":
                item.set("xmlns", "http://x")
            case "swap":
                other, there = places[(node * 31 + 7) % len(places)]
                parent[position], other[there] = copy.deepcopy(other[there]), copy.deepcopy(item)
            case "empty":
                item.clear()
            case "deepen":
                item.text = DEEP
    return root


def _places(item: ElementTree.Element, depth: int = 0) -> Iterator[tuple[ElementTree.Element, int]]:
    for position, child in enumerate(item):
        yield item, position
        if depth < 10:
            yield from _places(child, depth + 1)

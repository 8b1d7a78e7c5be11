"""YOLO folders with anything wrong: a data set whose every line is accounted for, or one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from PIL import Image

from defeat.data.folder import folder_data
from defeat.errors import DataError, DefeatError
from tests.helpers.mutations import NUMBERS, STRINGS, ByteChange, byte_changes, change_bytes
from tests.helpers.sound_data import check_pictures, check_records
from tests.helpers.trials import Tally, refused, sizes, try_inputs

LABELS = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.1\n1 0.1 0.1 0.4 0.1 0.4 0.4\n"

YAML = "path: {path}\ntrain: {train}\nval: {val}\nnames:\n  0: dog\n  1: cat\n"

PLACES = ["train.txt", "[images/train]", "images", "images/none", "../images/train", "/etc", "null", "5"]
PLACES += ["/data/of/another/machine/images/train", "{}", "labels/train", "pipe", "${oc.env:HOME}"]

numbers = st.sampled_from([*map(str, NUMBERS), "1_0", "٣", "0x1", "nan", "-inf", "", "1e400", "0.5", "cat"])
label_lines = st.lists(numbers, max_size=9).map(" ".join) | st.sampled_from(
    [text for text in STRINGS if "\ud800" not in text and "\ud83d" not in text]
)
LISTED = ["./images/train/a.jpg", "/other/machine/images/train/a.jpg", "images\\train\\a.jpg", "a.jpg", ".."]
LISTED += ["../up.jpg", "/etc/passwd", "pipe", "images/train/gone.jpg", "a" * 300, "b\0", "  ", ""]


class Case(NamedTuple):
    path: str
    train: str
    val: str
    yaml: list[ByteChange]
    lines: list[str]
    text: list[ByteChange]
    listed: list[str]
    skip: bool


none = st.just([])
cases = st.builds(
    Case,
    st.sampled_from([".", ".", ".", "..", "/data/of/another/machine", "null", "~"]),
    st.just("images/train") | st.just("train.txt") | st.sampled_from(PLACES),
    st.just("images/train") | st.sampled_from(PLACES),
    none | none | none | byte_changes,
    none | none | st.lists(label_lines, max_size=3),
    none | none | none | byte_changes,
    none | st.lists(st.sampled_from(LISTED), max_size=3),
    st.booleans(),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("yolo") / "root"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for stem in ("a", "b", "no label"):
        Image.new("RGB", (60, 40)).save(root / "images" / "train" / f"{stem}.jpg")
    Image.new("RGB", (60, 40)).save(root.parent / "up.jpg")
    (root / "labels" / "train" / "b.txt").write_text(LABELS)
    os.mkfifo(root / "pipe")
    return root


@sizes(quick=60, full=1500)
def test_changed_yolo_folders(examples: int, root: Path, tally: Tally) -> None:
    label_file = root / "labels" / "train" / "a.txt"

    def check(case: Case) -> str:
        yaml = YAML.format(path=case.path, train=case.train, val=case.val)
        (root / "data.yaml").write_bytes(change_bytes(yaml.encode(), case.yaml))
        labels = LABELS + "\n".join(case.lines)
        label_file.write_bytes(change_bytes(labels.encode("utf-8", "surrogatepass"), case.text))
        listed = "\n".join(["images/train/b.jpg", *case.listed])
        (root / "train.txt").write_bytes(listed.encode())
        try:
            module = folder_data(str(root), layout="yolo", on_error="skip" if case.skip else "raise")
            data = module.read("train")
        except DefeatError as error:
            return refused(error, str(root) if isinstance(error, DataError) else "")
        assert all(record.path.is_relative_to(root) for record in data.records), "nothing outside the root"
        assert case.skip or not any("skipped" in reason for reason in data.counts)
        left = ("annotations skipped", "degenerate boxes dropped", "boxes outside dropped")
        kept = sum(len(record.boxes) for record in data.records)
        given = sum(count_lines(root / "labels" / "train" / f"{r.path.stem}.txt") for r in data.records)
        assert kept + sum(data.counts.get(reason, 0) for reason in left) == given
        check_records(data)
        check_pictures(data)
        return "read, some left out" if any("skipped" in reason for reason in data.counts) else "read"

    try_inputs("YOLO labels and data.yaml", cases, check, examples, tally)


def count_lines(path: Path) -> int:
    """Every line that could be meant to be an object."""
    if not path.exists():
        return 0
    return sum(bool(line.strip()) for line in path.read_text("utf-8-sig").splitlines())

"""Classes, splits and pictures that do not belong together are told, and those that do are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from defeat.data.class_checks import class_problems, similar_names, split_class_problems
from defeat.data.exif import decide_exif
from defeat.data.images import read_size
from defeat.data.pictures import look_at, nearly_same, spread, undecodable_problems
from defeat.data.split_checks import nearly_same_problems, split_problems
from defeat.types import Annotations, Problem, Record
from tests.helpers.data_sets import save_picture


def record(path: Path, *labels: int) -> Record:
    width, height = read_size(path) if path.is_file() else (60, 40)
    boxes = np.tile(np.array([[1, 2, 30, 20]], np.float32), (len(labels), 1))
    ignore, area = np.zeros(len(labels), bool), np.full(len(labels), 522, np.float32)
    return Record(path.stem, path, width, height, boxes, np.array(labels, np.int64), ignore, area)


def annotated(*records: Record, classes: tuple[str, ...] = ("cat", "dog")) -> Annotations:
    ids = tuple(range(1, len(classes) + 1))
    return decide_exif(Annotations(records, classes, ids, "file.json", {}))


def smooth(path: Path, seed: int, size: tuple[int, int] = (120, 90)) -> Path:
    """Save a picture of coarse light and shade, as photographs have it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize(
    ("first", "second"),
    [("helmet", "Helmet"), ("hard hat", "hard_hat"), ("dog", "dog "), ("car", "cars"), ("helmet", "helmt"),
     ("horse", "hrose"), ("plane", "plate")],
)  # fmt: skip
def test_names_that_are_probably_one(first: str, second: str) -> None:
    assert similar_names(["other", first, second]) == [(first, second)]


def test_names_that_are_not_one() -> None:
    cards = [f"{rank}{suit}" for rank in ("A", 2, 3, 10, "J") for suit in "chsd"]
    voc = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse person sheep sofa"
    kinds = ["type 1", "type 2", "class_1", "class_10", "grade a", "grade b", "mask", "no mask"]
    assert similar_names([*cards, *voc.split(), *kinds]) == []


def test_classes_of_one_split_and_with_few_boxes(tmp_path: Path) -> None:
    train = annotated(
        *[record(tmp_path / f"{i}.jpg", 1, 1) for i in range(20)], record(tmp_path / "x.jpg", 2)
    )
    val = annotated(record(tmp_path / "v.jpg", 1))
    (few,) = class_problems(train, trained=True)
    assert "1 of 2 classes have fewer than 5 boxes: dog (1)" in few.cause
    (alone,) = split_class_problems(train, val)
    assert "1 of 2 classes have boxes in the training split alone: dog (1)" in alone.cause
    (unlearned,) = split_class_problems(val, train)
    assert "validation split alone: dog (1): they cannot be learned" in unlearned.cause


def causes(*problems: Problem) -> list[str]:
    assert not any(problem.severe for problem in problems)
    return [problem.cause for problem in problems]


def test_pictures_of_equal_content_are_found_whatever_their_names(tmp_path: Path) -> None:
    paths = [save_picture(tmp_path / f"{i}.png", 60 + i) for i in range(4)]
    copy = tmp_path / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    train = annotated(*[record(path, 1, 2) for path in paths[:3]])
    val = annotated(record(copy, 1, 2), record(paths[3], 1, 2))
    (cause,) = causes(*split_problems(train, val))
    assert cause == "training and validation share 1 picture (0.png = copy.png)"
    assert causes(*split_problems(train, val, most_files=4)) == []
    (twice,) = causes(*split_problems(train, train))
    assert (
        "all 3 pictures of the validation split are in the training split too, read from 'file.json'" in twice
    )


def test_pictures_that_are_nearly_the_same(tmp_path: Path) -> None:
    paths = [smooth(tmp_path / f"{i}.png", i) for i in range(6)]
    with Image.open(paths[0]) as image:
        image.resize((60, 45)).save(tmp_path / "small.png")
    with Image.open(paths[1]) as image:
        image.save(tmp_path / "pressed.jpg", quality=40)
    with Image.open(paths[2]) as image:
        ImageEnhance.Brightness(image).enhance(0.8).save(tmp_path / "dark.png")
    for name in ("flat", "flat2"):
        Image.new("RGB", (120, 90), "white").save(tmp_path / f"{name}.png")
    train = annotated(*[record(path, 1) for path in [*paths[:4], tmp_path / "flat.png"]])
    copies = [tmp_path / name for name in ("small.png", "pressed.jpg", "dark.png")]
    val = annotated(*[record(path, 1) for path in [*copies, *paths[4:], tmp_path / "flat2.png"]])
    looked = [look_at(split, range(len(split.records))) for split in (train, val)]
    assert nearly_same(*looked) == [(0, 0), (1, 1), (2, 2)]
    (problem,) = nearly_same_problems(train, val, *looked)
    assert "3 of 6 validation pictures are nearly the same" in problem.cause
    assert "0.png = small.png" in problem.cause


def test_pictures_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    good = save_picture(tmp_path / "good.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-900])
    annotations = annotated(record(good, 1), record(cut, 1), record(tmp_path / "gone.png", 1))
    pictures = look_at(annotations, range(3))
    assert list(pictures.errors) == [1, 2]
    (problem,) = undecodable_problems(pictures, "val")
    assert "2 of 3 val pictures cannot be used" in problem.cause
    assert "cut.png" in problem.cause
    assert problem.severe


def test_a_sample_is_all_of_what_is_small_and_from_all_over_what_is_large() -> None:
    assert list(spread(3, 5)) == [0, 1, 2]
    assert list(spread(101, 3)) == [0, 50, 100]
    assert list(spread(0, 3)) == []

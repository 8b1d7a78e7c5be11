"""Pictures lie as their boxes do, for all eight EXIF orientations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defeat.data import DetectionDataModule, DetectionDataset, read_image, read_voc
from defeat.data import exif as exif_module
from defeat.data.exif import Exif, decide_exif
from defeat.errors import ConfigError, DataError
from defeat.types import Annotations, Record
from tests.helpers.data_sets import voc_object

Pixels = NDArray[np.uint8]

STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda shown: shown,
    2: np.fliplr,
    3: lambda shown: np.rot90(shown, 2),
    4: np.flipud,
    5: lambda shown: shown.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda shown: np.rot90(shown, 2).transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, -1),
}
"""What a file holds whose picture a viewer shows, by its orientation."""

OBLONG, SQUARE = (8, 6), (6, 6)
AMBIGUOUS = [(o, OBLONG) for o in (2, 3, 4)] + [(o, SQUARE) for o in range(2, 9)]


def shown(size: tuple[int, int]) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def picture(folder: Path, orientation: int, size: tuple[int, int] = OBLONG, *, turned: bool) -> Record:
    """Save a picture; its record has the size as shown, or as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"{orientation}_{size[0]}_{turned}.png"
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](shown(size))))
    image.save(path, exif=exif)
    none = np.zeros(0)
    sizes = size if turned else image.size
    return Record(path.stem, path, *sizes, none.reshape(0, 4), none.astype(int), none.astype(bool), none)


def annotated(*records: Record) -> Annotations:
    return Annotations(records, ("cat",), (1,), "set.json", {})


def as_shown(annotations: Annotations) -> list[bool]:
    """Whether each picture is read as a viewer shows it; else it has to be as stored."""
    result = []
    for record, (image, _) in zip(annotations.records, DetectionDataset(annotations), strict=True):
        orientation = int(record.path.stem[0])
        square = "_6_" in record.path.stem
        wanted = shown(SQUARE if square else OBLONG)
        pixels = image.permute(1, 2, 0).numpy()
        result.append(np.array_equal(pixels, wanted))
        assert result[-1] or np.array_equal(pixels, STORED[orientation](wanted))
    return result


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("telling", [5, 6, 7, 8])
def test_all_orientations_follow_the_pictures_that_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, turned: bool, telling: int
) -> None:
    records = [picture(tmp_path, telling, turned=turned), picture(tmp_path, 1, turned=True)]
    annotations = annotated(*records, *(picture(tmp_path, o, size, turned=turned) for o, size in AMBIGUOUS))
    assert as_shown(annotations) == [turned, True, *[turned] * len(AMBIGUOUS)]
    (line,) = caplog.messages
    assert "10 of 12 pictures have an EXIF orientation" in line
    assert "2_8_" in line
    assert "data.exif" in line


@pytest.mark.parametrize(("exif", "turned"), [("apply", True), ("ignore", False)])
def test_the_convention_may_be_given(tmp_path: Path, exif: Exif, turned: bool) -> None:
    records = [picture(tmp_path, o, size, turned=turned) for o, size in [*AMBIGUOUS, (6, OBLONG)]]
    assert as_shown(decide_exif(annotated(*records), exif)) == [turned] * len(records)
    other = picture(tmp_path, 8, turned=not turned)  # its size contradicts
    with pytest.raises(DataError, match=rf"EXIF orientation 8; data\.exif={exif}"):
        DetectionDataset(decide_exif(annotated(other), exif))[0]
    with pytest.raises(ConfigError, match="auto, apply or ignore"):
        DetectionDataModule(train=annotated, val=annotated, exif="turn")  # type: ignore[arg-type]


def test_what_nothing_tells_is_read_as_stored_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [picture(tmp_path, 3, turned=True), picture(tmp_path, 1, turned=True)]
    assert as_shown(annotated(*records)) == [False, True]
    (line,) = caplog.messages
    assert "1 of 2 pictures" in line
    assert "3_8_True.png" in line
    assert "no picture tells" in line


def test_pictures_that_contradict_one_another_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = [picture(tmp_path, 6, turned=True), picture(tmp_path, 8, turned=False)]
    records = [*pair, picture(tmp_path, 7, turned=True), picture(tmp_path, 3, turned=True)]
    assert as_shown(annotated(*records)) == [True, False, True, True]  # the last as the majority
    (line,) = caplog.messages
    assert "1 have the annotated size as stored (8_8_False.png) and 2 turned (6_8_True.png" in line


def test_nothing_is_said_where_nothing_is_in_doubt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [picture(tmp_path, o, turned=True) for o in (1, 6, 8)]
    damaged = picture(tmp_path, 3, turned=True)
    with Image.open(damaged.path) as image:
        image.save(damaged.path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    gone = records[0]._replace(path=tmp_path / "gone.png")
    annotations = decide_exif(annotated(*records, damaged, gone))
    assert as_shown(annotations._replace(records=[*records, damaged])) == [True, True, True, False]
    assert not caplog.records


def test_a_split_that_does_not_tell_asks_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = {
        "train": annotated(picture(tmp_path, 6, turned=True)),
        "val": annotated(picture(tmp_path, 3, turned=True)),
    }
    read = {name: lambda split=split, **_: split for name, split in splits.items()}
    data = DetectionDataModule(**read, classes=["cat"])
    data.setup("validate")
    assert as_shown(data.read("val")) == [True]
    assert "like most of the 1 that tell" in caplog.text

    def fail(**_: object) -> Annotations:
        raise DataError("not on this machine")

    data = DetectionDataModule(train=fail, val=read["val"], classes=["cat"])
    assert as_shown(data.read("val")) == [False]


def test_of_a_large_data_set_a_sample_is_opened_and_all_only_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exif_module, "SAMPLE", 3)
    opened: list[Path] = []
    read_header = exif_module.read_header
    monkeypatch.setattr(exif_module, "read_header", lambda path: opened.append(path) or read_header(path))
    upright, upside_down = picture(tmp_path, 1, turned=True), picture(tmp_path, 3, turned=True)
    telling = picture(tmp_path, 6, turned=True)
    decide_exif(annotated(*[upright] * 9))
    assert len(opened) == 3
    rule = decide_exif(annotated(upside_down, telling, *[upright] * 7)).exif
    assert rule is not None
    assert rule.apply
    assert len(opened) == 3 + 3 + 9


def test_a_voc_file_without_size_takes_the_picture_that_holds_its_boxes(voc) -> None:
    for stem, y in (("a", 7), ("b", 5)):
        voc.add(stem, voc_object("cat", 2, y, 5, y + 1), size="")
        path = voc.root / "JPEGImages" / f"{stem}.jpg"
        picture(voc.root, 6, (6, 8), turned=True).path.rename(path)
    first, second = read_voc(voc.root, "train").records
    assert (first.width, first.height, first.boxes.tolist()) == (6, 8, [[1, 6, 5, 8]])
    assert (second.width, second.height) == (8, 6)
    assert read_image(first.path, (6, 8)).shape == (3, 8, 6)

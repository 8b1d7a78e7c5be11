"""The report on a data set: figures by hand, findings, pictures, and whether a training would fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from PIL import Image

from defeat.cli.check import run
from defeat.config import compose_config
from defeat.data_report import inspect_data
from defeat.data_report.pages import as_json
from tests.helpers.data_sets import CocoFiles, save_picture

NAME = "<b>|=$x${a}"


def configured(folder: Path, *words: str) -> DictConfig:
    splits = [
        f"data.{split}.{key}={value}"
        for split in ("train", "val")
        for key, value in (("annotation_file", f"{split}.json"), ("image_root", "images"))
    ]
    words = (
        "data=coco",
        f"data.root={folder}",
        *splits,
        "detector@student=scenes_student",
        f"run_dir={folder / 'out'}",
        *words,
    )
    return compose_config("data_check", list(words))


def check(folder: Path) -> dict:
    """Run the command's task and return what it filed, with the status."""
    (folder / "out").mkdir(exist_ok=True)
    status = 0
    try:
        run(configured(folder))
    except SystemExit as ended:
        status = int(ended.code or 0)
    return {**json.loads((folder / "out" / "check.json").read_text()), "status": status}


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    """Two splits of other pictures."""
    coco = CocoFiles(tmp_path)
    coco.content["categories"][0]["name"] = NAME
    coco.write()
    (tmp_path / "train.json").write_text(coco.file.read_text())
    for position, image in enumerate(coco.content["images"]):
        image["file_name"] = f"val{position}.png"
        image["width"] = 61 + position
        save_picture(coco.images / image["file_name"], 61 + position)
    (tmp_path / "val.json").write_text(json.dumps(coco.content))
    return coco


def test_sound_data_is_counted_and_drawn(files: CocoFiles, tmp_path: Path, capsys) -> None:
    report = check(tmp_path)
    assert (report["status"], report["fails"], report["problems"]) == (0, False, [])
    train = report["splits"]["train"]
    assert (train["images"], train["images_without_objects"]) == (3, 1)
    assert train["boxes_of_class"] == {"dog": 1, NAME: 2}
    assert train["boxes_to_ignore"] == 1
    assert sum(train["boxes_of_stride"].values()) == train["boxes"] == 3
    assert train["decoded"] == 3
    for name in ("contact_sheet_train", "contact_sheet_val", "classes", "sizes"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert min(picture.size) > 200
    assert r"\<b\>\|=\$x\${a}" in (tmp_path / "out" / "check.md").read_text()
    assert "a training can begin; 0 findings" in capsys.readouterr().out


def without_objects(folder: Path) -> None:
    content = json.loads((folder / "val.json").read_text())
    (folder / "val.json").write_text(json.dumps({**content, "annotations": []}))


def cut_picture(folder: Path) -> None:
    path = folder / "images" / "val0.png"
    path.write_bytes(path.read_bytes()[:-500])


def lost_picture(folder: Path) -> None:
    (folder / "images" / "a.jpg").unlink()


def outlines_alone(folder: Path) -> None:
    content = json.loads((folder / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 1, 20, 1, 20, 20]]
        del annotation["bbox"]
    (folder / "train.json").write_text(json.dumps(content))


def no_json(folder: Path) -> None:
    (folder / "val.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "split", "told"),
    [
        (without_objects, "val", "none of 3 images has an object"),
        (cut_picture, "val", "1 of 3 val pictures cannot be used"),
        (lost_picture, "train", "1 image skipped in all, 2 images left"),
        (outlines_alone, "train", "it has a segmentation and no bbox"),
        (no_json, "val", "is not valid JSON"),
    ],
)
def test_what_would_stop_a_training_ends_with_status_1(
    files: CocoFiles, tmp_path: Path, spoil: Callable[[Path], None], split: str, told: str
) -> None:
    spoil(tmp_path)
    report = check(tmp_path) if spoil is no_json else as_json(inspect_data(configured(tmp_path)))
    assert report["fails"]
    assert report.get("status", 1) == 1
    severe = [problem for problem in report["problems"] if problem["severe"]]
    assert [problem["split"] for problem in severe] == [split]  # one cause, one line
    assert told in severe[0]["cause"] + severe[0]["remedy"]


def test_one_file_given_twice_is_told_and_refuses_nothing(files: CocoFiles, tmp_path: Path) -> None:
    report = as_json(inspect_data(configured(tmp_path, "data.val.annotation_file=train.json")))
    (problem,) = report["problems"]
    assert not report["fails"]
    assert "all 3 pictures of the validation split are in the training split too" in problem["cause"]

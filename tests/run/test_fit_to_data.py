"""Sizes that the data decide, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from defeat.detectors import faster_rcnn, fcos, retinanet
from defeat.errors import DataError
from defeat.run.fit_to_data import fit_to_data, fitted_sizes
from defeat.types import Record
from tests.helpers.narrow import NARROW

SIZES = {"min_size": None, "max_size": None, "anchor_sizes": None}


def records(width: int, height: int, side: float) -> list[Record]:
    """Pictures with one square object each."""
    boxes = np.array([[0, 0, side, side]], dtype=np.float32)
    one = Record(
        1, Path("a"), width, height, boxes, np.ones(1, np.int64), np.zeros(1, bool), np.ones(1, np.float32)
    )
    return [one] * 3


def test_large_pictures_are_reduced_and_small_objects_enlarged() -> None:
    # 1280 x 960 with objects of 240: shorter side 640, objects of 160, of which anchors take at most 32
    large = fitted_sizes("defeat.detectors.faster_rcnn", records(1280, 960, 240))
    assert large["min_size"] == [480, 576, 704, 640]  # 560 and 720 are no multiples of 32
    assert large["max_size"] == 960  # 640 * 1.125 * 4 / 3
    assert large["anchor_sizes"] == [[32], [64], [128], [256], [512]]
    # 320 x 320 with objects of 10: enlarged 1.6 times
    small = fitted_sizes("defeat.detectors.faster_rcnn", records(320, 320, 10))
    assert small["min_size"][-1] == 512
    assert small["anchor_sizes"][0] == [16]
    # of 2 pixels: no more than twice
    assert fitted_sizes("defeat.detectors.faster_rcnn", records(320, 320, 2))["min_size"][-1] == 640


@pytest.mark.parametrize("layers", [None, [2, 3], [3]])
@pytest.mark.parametrize("builder", [faster_rcnn, retinanet, fcos], ids=lambda builder: builder.__name__)
def test_every_family_is_built_of_its_sizes(builder: Any, layers: list[int] | None) -> None:
    """Also over fewer stages; the builders refuse another number of sizes than of levels."""
    target = f"defeat.detectors.{builder.__name__}"
    given = {} if layers is None else {"returned_layers": layers}
    fitted = fit_to_data(config(_target_=target, **SIZES, **given), records(320, 240, 30))["student"]["model"]
    with torch.device("meta"):
        sizes = {key: fitted[key] for key in SIZES}
        detector = builder(3, backbone=NARROW, fpn_channels=64, **sizes, **given)
    assert detector.transform.min_size == tuple(sizes["min_size"])


def config(**model: Any) -> dict[str, Any]:
    model = {
        "_target_": "defeat.detectors.faster_rcnn",
        "_partial_": True,
        "norm": "frozen",
        "trainable_layers": 3,
        **model,
    }
    return {"student": {"model": model, "weights": None, "backbone_weights": "x"}, "teacher": None}


def test_pictures_tell_the_size_that_records_do_not(tmp_path: Path) -> None:
    Image.new("RGB", (320, 240)).save(tmp_path / "a.png")
    unknown = [record._replace(width=0, height=0, path=tmp_path / "a.png") for record in records(1, 1, 20)]
    broken = unknown[0]._replace(path=tmp_path / "b.png")
    builder = "defeat.detectors.retinanet"
    assert fitted_sizes(builder, [broken, *unknown]) == fitted_sizes(builder, records(320, 240, 20))
    with pytest.raises(DataError, match="no picture tells its size"):
        fitted_sizes(builder, [broken])


def test_what_is_given_stays_and_norms_of_random_weights_learn(tmp_path: Path) -> None:
    given = config(min_size=100, max_size=None, anchor_sizes=None)
    model = fit_to_data(given, records(320, 240, 20))["student"]["model"]
    assert model["min_size"] == 100
    assert model["max_size"] == 160  # 100 * 4 / 3, in steps of 32
    assert model["anchor_sizes"][0] == [8]  # objects of 20 * 100 / 240 pixels
    assert model["norm"] == "frozen"
    assert given["student"]["model"]["max_size"] is None
    given["student"]["backbone_weights"] = None
    model = fit_to_data(given, records(320, 240, 30))["student"]["model"]
    assert (model["norm"], model["trainable_layers"]) == ("batch", 5)


def distilled(teacher: dict[str, Any], weights: str | None) -> dict[str, Any]:
    student = config(min_size=None, max_size=None, anchor_sizes=None)
    return {**student, "teacher": {"model": teacher, "weights": weights, "download": False}}


def test_the_teacher_has_the_sizes_of_its_training_and_the_student_its_resize(tmp_path: Path) -> None:
    sizes = {"min_size": [96, 128], "max_size": 200, "anchor_sizes": [[8], [16], [32], [64], [128]]}
    recorded = {
        "classes": ["a"],
        "config": {"student": {"model": {**sizes, "norm": "batch", "stride_in_1x1": True}}},
    }
    torch.save({"state_dict": {"student.x": torch.zeros(1)}, "defeat": recorded}, tmp_path / "t.ckpt")
    is_open = dict.fromkeys(("min_size", "max_size", "anchor_sizes", "stride_in_1x1"))
    node = config(backbone="resnet50", **is_open)["student"]["model"]
    given = distilled(node, str(tmp_path / "t.ckpt"))
    fitted = fit_to_data(given, records(320, 240, 60))
    teacher, student = fitted["teacher"]["model"], fitted["student"]["model"]
    assert teacher["stride_in_1x1"] is True
    given["teacher"]["model"] = node | {"min_size": 64, "stride_in_1x1": False}
    chosen = fit_to_data(given, records(320, 240, 60))["teacher"]["model"]
    assert (chosen["min_size"], chosen["max_size"], chosen["stride_in_1x1"]) == (64, 200, False)
    assert (teacher["min_size"], teacher["anchor_sizes"]) == ([96, 128], sizes["anchor_sizes"])
    assert teacher["norm"] == "frozen"
    assert (student["min_size"], student["max_size"]) == ([96, 128], 200)
    assert student["anchor_sizes"][0] == [32]  # 60 * 128 / 240
    # A student that goes on from a detector keeps the anchors that its boxes are relative to.
    going_on = {"model": node, "weights": str(tmp_path / "t.ckpt"), "download": False}
    continued = fit_to_data({"student": going_on}, records(320, 240, 60))["student"]["model"]
    assert continued["anchor_sizes"] == sizes["anchor_sizes"]
    assert continued["min_size"][-1] == 256  # of the data: 240 as a multiple of 32
    torch.save({"x": torch.zeros(1)}, tmp_path / "foreign.pth")
    foreign = {**going_on, "weights": str(tmp_path / "foreign.pth")}
    assert (
        fit_to_data({"student": foreign}, records(320, 240, 60))["student"]["model"]["anchor_sizes"] is None
    )


def test_a_teacher_that_records_no_size_takes_the_students(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "coco.pth")
    target = "torchvision.models.detection.fasterrcnn_resnet50_fpn"
    node: dict[str, Any] = {"_target_": target, "_partial_": True, "min_size": None}
    given = distilled(node, str(tmp_path / "coco.pth"))
    given["student"]["model"]["min_size"] = [480, 640]
    fitted = fit_to_data(given, records(320, 240, 60))
    teacher, student = fitted["teacher"]["model"], fitted["student"]["model"]
    assert (student["min_size"], student["max_size"]) == ([480, 640], 864)  # 640 * 4 / 3, in steps of 32
    assert (teacher["min_size"], teacher["max_size"]) == (640, 864)
    node["min_size"] = 800  # given, too: pre-flight tells that they differ
    assert "max_size" not in fit_to_data(given, records(320, 240, 60))["teacher"]["model"]


def test_the_box_head_learns_from_fewer_proposals_where_there_is_one() -> None:
    one_stage = {"_target_": "torchvision.models.detection.retinanet_resnet50_fpn_v2", "_partial_": True}
    given = distilled(one_stage, None)
    for role in ("student", "teacher"):
        given[role]["model"]["box_batch_size_per_image"] = None
    fitted = fit_to_data(given, records(320, 240, 60))
    assert fitted["student"]["model"]["box_batch_size_per_image"] == 128
    assert "box_batch_size_per_image" not in fitted["teacher"]["model"]
    given["student"]["model"]["box_batch_size_per_image"] = 256
    assert fit_to_data(given, records(320, 240, 60))["student"]["model"]["box_batch_size_per_image"] == 256


@pytest.mark.parametrize(
    ("teacher", "size", "longest"),
    [
        ({"_target_": "defeat.detectors.retinanet", "backbone": "resnet10"}, 800, 1333),
        ({"_target_": "torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn"}, 320, 640),
        # of one size for every image, which no other detector has
        ({"_target_": "torchvision.models.detection.ssdlite320_mobilenet_v3_large"}, 256, 384),
    ],
)
def test_a_teacher_that_records_no_size_has_its_builders(
    teacher: dict[str, Any], size: int, longest: int
) -> None:
    node = {"_partial_": True, "min_size": None, "max_size": None, "anchor_sizes": None, **teacher}
    fitted = fit_to_data(distilled(node, None), records(320, 240, 60))
    assert not {"min_size", "max_size", "anchor_sizes"} & fitted["teacher"]["model"].keys()
    model = fitted["student"]["model"]
    assert (model["min_size"][-1], model["max_size"]) == (size, longest)
    assert len(model["min_size"]) == 4

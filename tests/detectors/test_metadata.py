"""Safetensors files that say which detector they are of, and detectors that are built by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from defeat.config import build, compose_config, to_plain
from defeat.detectors import Detector, faster_rcnn, read_weights
from defeat.detectors.weights import describe, read_model
from defeat.errors import WeightsError
from defeat.export.student import read_student
from defeat.run.checkpoint_detector import build_student, described_by_weights
from tests.helpers.narrow import NARROW

CLASSES = ["cat", "dog", "crow"]
SETTINGS = {"backbone": NARROW, "fpn_channels": 8, "box_head_channels": 16}
MODEL = {"_target_": "defeat.detectors.faster_rcnn", **SETTINGS, "strides": "fixed", "min_size": 64}


@pytest.fixture
def path(tmp_path: Path) -> str:
    torch.manual_seed(0)
    detector = faster_rcnn(4, **SETTINGS)  # type: ignore[arg-type]
    save_file(detector.state_dict(), tmp_path / "t.safetensors", describe(CLASSES, MODEL))
    return str(tmp_path / "t.safetensors")


def node(weights: str, *more: str) -> Any:
    words = ["detector@teacher=imported", f"teacher.weights={weights}", "run_dir=x", *more]
    return to_plain(compose_config("train", words))["teacher"]


def test_a_described_file_needs_no_other_word(path: str) -> None:
    described = described_by_weights(
        node(path, "teacher.model.max_size=96", "+teacher.model.box_nms_thresh=0.4")
    )
    wanted = {**MODEL, "max_size": 96, "box_nms_thresh": 0.4, "_partial_": True}
    assert described["model"] == wanted
    teacher: Detector = build(described, classes=["crow", "cat"], teacher=True)
    there = read_weights(path).tensors["roi_heads.box_predictor.bbox_pred.weight"].unflatten(0, (-1, 4))
    here = teacher.model.roi_heads.box_predictor.bbox_pred.weight.unflatten(0, (-1, 4))  # type: ignore[union-attr, operator]
    assert torch.equal(here, there[[0, 3, 1]])


def test_a_setting_that_the_weights_were_not_trained_with_is_refused(path: str) -> None:
    described = described_by_weights(node(path, "+teacher.model.strides=derived"))
    with pytest.raises(WeightsError, match="was trained with strides=fixed, but strides=derived"):
        build(described, classes=CLASSES, teacher=True)


def test_a_described_file_is_evaluated_like_a_checkpoint(path: str) -> None:
    file = read_weights(path)
    assert (file.classes, file.outputs) == (tuple(CLASSES), ("__background__", *CLASSES))
    student: Any = build_student(file, CLASSES)
    assert student.transform.min_size == (64,)
    assert student.rpn.anchor_generator.strides == (4, 8, 16, 32, 64)
    with_node: Any = build_student(file, CLASSES, node=node(path, "teacher.model.min_size=96"))
    assert with_node.transform.min_size == (96,)


def test_a_described_file_is_exported_like_a_checkpoint(path: str) -> None:
    student = read_student(path)
    assert (student.classes, student.class_ids) == (tuple(CLASSES), (1, 2, 3))
    assert student.record == {"defeat": None, "global_step": None, "curves": None}


def test_a_detector_that_names_its_builder_stays_as_it_is(path: str) -> None:
    given = {"model": {"_target_": "x", "min_size": None}, "weights": path}
    assert described_by_weights(given) is given
    assert described_by_weights(None) is None


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, "does not say which detector it is of"),
        ({"classes": "5", "model": "{}"}, "list of class names is 5"),
        ({"classes": "[1]", "model": "{}"}, "list of class names"),
        ({"classes": '["a"]', "model": "[" * 10**5}, "no JSON"),
        ({"classes": '["a"]', "model": "5"}, "its configuration is 5"),
        ({"classes": '["a"]', "model": json.dumps({"_target_": "${oc.env:HOME}"})}, "no run writes"),
        (
            {"classes": '["a"]', "model": json.dumps({"_target_": "os.system", "command": "true"})},
            "os.system",
        ),
    ],
)
def test_metadata_that_nobody_should_believe(metadata: dict[str, str], told: str, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "t.safetensors", metadata)

    def read() -> None:
        if metadata:
            build_student(read_weights(tmp_path / "t.safetensors"), ["a"])
        read_model(tmp_path / "t.safetensors")

    with pytest.raises(WeightsError, match=told):
        read()


def test_other_files_are_named(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "t.pth")
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 20)
    for name, told in (
        ("none", "no such file"),
        ("t.pth", "detector@teacher="),
        ("damaged.safetensors", "not a readable"),
    ):
        with pytest.raises(WeightsError, match=told):
            read_model(tmp_path / name)

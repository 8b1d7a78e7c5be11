"""Exported graphs are loaded and fed as their metadata says; here a graph whose answer is known.

It finds one object of class 2 in every picture: the whole of it, with the mean of its values as score.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import defeat
from defeat.config import compose_config
from defeat.errors import ConfigError, WeightsError
from defeat.predict.predict import predict

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ABOUT: dict[str, Any] = {
    "classes": [{"label": 1, "name": "a", "category_id": 7}, {"label": 2, "name": "b", "category_id": 9}],
    "preprocessing": {
        **{"min_size": 64, "max_size": 96, "fixed_size": None, "pad_multiple": 32},
        "exif_orientation": "applied",
    },
    "thresholds": {"score": 0.0, "nms_iou": 0.5, "detections_per_image": 1},
    "outputs": {"boxes": "", "scores": "", "labels": "", "count": ""},
}


def write_graph(path: Path, about: dict[str, Any]) -> None:
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    values = {
        "order": np.array([1, 0]),
        "one": np.array([1]),
        "axes": np.array([1, 2, 3]),
        "nothing": np.array(0, np.float32),
        "three": np.array(3, np.float32),
        "two": np.array(2),
    }
    steps = [
        make("Gather", ["sizes", "order"], ["flipped"], axis=1),  # (B, 2): width, height
        make("Cast", ["flipped"], ["size"], to=onnx.TensorProto.FLOAT),
        make("Mul", ["size", "nothing"], ["corner"]),
        make("Concat", ["corner", "size"], ["rows"], axis=1),
        make("Unsqueeze", ["rows", "one"], ["boxes"]),  # (B, 1, 4)
        make("ReduceSum", ["images", "axes"], ["sum"], keepdims=0),
        make("ReduceProd", ["size", "one"], ["area"], keepdims=0),
        make("Mul", ["area", "three"], ["values"]),
        make("Div", ["sum", "values"], ["mean"]),
        make("Unsqueeze", ["mean", "one"], ["scores"]),  # (B, 1)
        make("Div", ["flipped", "flipped"], ["ones"]),
        make("ReduceProd", ["ones", "one"], ["count"], keepdims=0),  # (B,)
        make("Unsqueeze", ["count", "one"], ["single"]),
        make("Mul", ["single", "two"], ["labels"]),  # (B, 1)
    ]
    kinds = {"images": ("FLOAT", ["b", 3, "h", "w"]), "sizes": ("INT64", ["b", 2])}
    results = {"boxes": ("FLOAT", 3), "scores": ("FLOAT", 2), "labels": ("INT64", 2), "count": ("INT64", 1)}
    inputs = [_value(name, kind, shape) for name, (kind, shape) in kinds.items()]
    outputs = [_value(name, kind, [None] * rank) for name, (kind, rank) in results.items()]
    graph = onnx.helper.make_graph(
        steps, "g", inputs, outputs, [array(value, name) for name, value in values.items()]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _value(name: str, kind: str, shape: list[Any]) -> Any:
    return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    write_graph(tmp_path / "student.onnx", ABOUT)
    return tmp_path / "student.onnx"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pictures_are_resized_padded_and_scaled_back(graph: Path, batch_size: int):
    model = defeat.load(graph)
    assert (model.classes, model.upright) == (("a", "b"), True)
    sizes = [(48, 90), (120, 60), (20, 24), (7, 300)]
    pictures = [torch.full((3, *size), 51 * i + 51, dtype=torch.uint8) for i, size in enumerate(sizes)]
    found = model.predict(pictures, score_threshold=0.0, batch_size=batch_size)
    for i, ((height, width), prediction) in enumerate(zip(sizes, found, strict=True)):
        assert prediction["labels"].tolist() == [2]
        torch.testing.assert_close(prediction["boxes"], torch.tensor([[0.0, 0.0, width, height]]))
        assert prediction["scores"].tolist() == [pytest.approx(0.2 + 0.2 * i, abs=1e-4)]
    assert [len(p["labels"]) for p in model.predict(pictures, score_threshold=0.5)] == [0, 0, 1, 1]


def test_the_command_takes_a_graph_and_turns_pictures_as_the_training_did(graph: Path, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (60, 40), (255, 255, 255)).save(tmp_path / "turned.jpg", exif=exif)
    for name, rule in (("applied", "applied"), ("ignored", "ignored")):
        about = {**ABOUT, "preprocessing": {**ABOUT["preprocessing"], "exif_orientation": rule}}
        write_graph(graph, about)
        words = {"checkpoint": graph, "source": tmp_path / "turned.jpg", "run_dir": tmp_path / name}
        predict(compose_config("predict", [f"{key}={value}" for key, value in words.items()]))
        with (tmp_path / name / "predictions.csv").open() as file:
            (row,) = csv.DictReader(file)
        sides = (round(float(row["x2"])), round(float(row["y2"])))
        assert (row["class"], sides) == ("b", (40, 60) if rule == "applied" else (60, 40))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"teacher": True}, "teacher"),
        ({"ema": True}, "ema"),
        ({"device": "cuda"}, "on the CPU"),
        ({"precision": "bf16-mixed"}, "float32"),
    ],
)
def test_what_a_graph_does_not_have_is_refused(graph: Path, asked: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        defeat.load(graph, **asked)


def test_files_that_are_no_graph_of_a_student_are_told(tmp_path: Path):
    write_graph(tmp_path / "stranger.onnx", {})
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    for name in ("stranger", "damaged", "gone"):
        with pytest.raises(WeightsError, match=f"{name}.onnx"):
            defeat.load(tmp_path / f"{name}.onnx")


def test_without_the_runtime_the_extra_is_named(graph: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'defeat\[export\]'"):
        defeat.load(graph)

"""Exported weights and the Python file beside them, which makes torchvision's own model of them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from defeat.config import build
from defeat.detectors.capture import inspect_detector
from defeat.errors import ConfigError
from defeat.export.load_script import load_script
from defeat.export.student import TrainedStudent
from defeat.export.weights import verify_weights, write_weights

OWN = {"backbone": "resnet10", "fpn_channels": 64, "min_size": [48, 64], "max_size": 96}
CLASSES = ('cell "a"\n', "käfer {0}", "c")

STUDENTS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"box_head_channels": 16, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 40},
    "frozen_mobilenet_v3": {"backbone": "mobilenet_v3_small", "box_score_thresh": 0.01},
    "batch_mobilenet_v3": {"backbone": "mobilenet_v3_large", "norm": "batch", "box_score_thresh": 0.01},
    "retinanet": {"score_thresh": 0.01, "returned_layers": [2, 3], "anchor_sizes": [[9, 12]] * 4},
    "fcos": {"backbone": "mobilenet_v2", "norm": "sync", "score_thresh": 0.1},
    "stride_in_1x1": {"backbone": "resnet50", "stride_in_1x1": True, "box_score_thresh": 0.0},
    "v2": {"heads": "v2", "norm": "batch", "box_head_channels": 16, "box_score_thresh": 0.01},
    "aligned": {"anchors": "float", "strides": "fixed", "roi_align": "aligned", "box_score_thresh": 0.0},
    "retinanet_c5": {
        **{"anchors": "float", "strides": "fixed", "extra_levels_from": "c5", "relu_before_p7": False},
        # as many channels as C5, by which torchvision would go
        **{"returned_layers": [1, 2], "fpn_channels": 128, "score_thresh": 0.01},
    },
}


def student(model: dict[str, Any], classes: tuple[str, ...] = CLASSES) -> TrainedStudent:
    """A student of random weights, whose normalisation does something."""
    node = {"_target_": "defeat.detectors.create_detector", "model": {**model, "_partial_": True}}
    detector: nn.Module = build(node, classes=list(classes)).model.eval()
    state = detector.state_dict()
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var", "bn1.weight", "cls_logits.bias")):
            value.copy_(torch.rand_like(value) + 0.5)
    config = {"student": node, "data": {}}
    return TrainedStudent(detector, classes, (3, 7, 9), Path("best.ckpt"), "0" * 64, config)


def own(name: str) -> TrainedStudent:
    family = name.partition("_")[0]
    family = family if family in ("retinanet", "fcos") else "faster_rcnn"
    return student({"_target_": f"defeat.detectors.{family}", **OWN, **STUDENTS[name]})


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize("name", STUDENTS)
def test_torchvisions_own_model_computes_the_same_to_the_bit(name: str, tmp_path: Path):
    made = own(name)
    path = tmp_path / "student.safetensors"
    write_weights(made, path)
    # the first of 12 x 90 pixels: torchvision would take the wrong scales for its RoIAlign from it
    (check,) = verify_weights(made, path, images((12, 90), (64, 50), (60, 96)))
    assert (check.passed, check.boxes, check.scores) == (True, 0, 0)
    assert int(check.note.split()[0]) > 3
    content = runpy.run_path(str(tmp_path / "load_student.py"))
    assert content["CLASSES"] == ["__background__", *CLASSES]
    loaded: nn.Module = content["load"]()
    assert not any(type(module).__module__.startswith("defeat") for module in loaded.modules())
    assert inspect_detector(loaded).neck == inspect_detector(made.detector).neck
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert (json.loads(about["classes"]), json.loads(about["class_ids"])) == (list(CLASSES), [3, 7, 9])


def test_a_builder_of_torchvision_is_called_without_its_weights(tmp_path: Path):
    name = "torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn"
    model = {"_target_": name, "weights": None, "weights_backbone": None, "box_score_thresh": 0.0}
    made = student({**model, "box_detections_per_img": 7, "min_size": 64, "max_size": 96})
    path = tmp_path / "student.pth"
    write_weights(made, path)
    (check,) = verify_weights(made, path, images((40, 64)))
    assert (check.passed, check.note) == (True, "7 detections")


def test_a_difference_is_found(tmp_path: Path):
    made = own("faster_rcnn")
    path = tmp_path / "student.pth"
    write_weights(made, path)
    tensors = torch.load(path, weights_only=True)
    tensors["roi_heads.box_predictor.bbox_pred.bias"][9] += 0.1
    torch.save(tensors, path)
    (check,) = verify_weights(made, path, images((64, 64)))
    assert not check.passed
    assert check.boxes > 0


def test_a_strangers_builder_is_refused():
    made = own("faster_rcnn")
    made.config["student"]["model"]["_target_"] = "collections.OrderedDict"  # type: ignore[index]
    with pytest.raises(ConfigError, match="OrderedDict"):
        load_script(made, "student.pth")
    made = own("faster_rcnn")
    made.config["student"]["model"]["backbone"] = "mine"  # type: ignore[index]
    with pytest.raises(ConfigError, match="the backbone mine"):
        load_script(made, "student.pth")


PROGRAM = """
import sys
sys.modules["defeat"] = None  # any import of it fails
import torch
from load_student import load
found = load()([image / 255 for image in torch.load("images.pth")])
torch.save(found, "found.pth")
assert not [name for name in sys.modules if name.startswith(("defeat.", "lightning", "hydra"))]
"""


def test_it_loads_in_a_process_that_has_no_defeat(tmp_path: Path):
    made = own("retinanet")
    write_weights(made, tmp_path / "student.pth")
    pictures = images((64, 50), (60, 96))
    torch.save(pictures, tmp_path / "images.pth")
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    found = torch.load(tmp_path / "found.pth")
    with torch.inference_mode():
        for expected, one in zip(made.detector([p / 255 for p in pictures]), found, strict=True):
            assert len(one["labels"]) > 0
            assert all(expected[key].equal(one[key]) for key in ("boxes", "scores", "labels"))

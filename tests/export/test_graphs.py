"""Exported graphs against torchvision's own forward, at sizes and batches that they were not traced with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import (
    RetinaNet,
    maskrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)

from defeat.detectors import faster_rcnn, fcos, retinanet
from defeat.errors import ConfigError
from defeat.export.graph import check_exportable
from defeat.export.onnx_file import write_onnx
from defeat.export.student import TrainedStudent
from defeat.types import Prediction

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ("dog", 'a "b"\n', "käfer")
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"returned_layers": [2, 3], "box_head_channels": 32, "rpn_post_nms_top_n_test": 200},
    "retinanet": {"returned_layers": [4]},
    "fcos": {"returned_layers": [4]},
}
SHAPES: dict[str, list[tuple[int, int]]] = {
    "as traced": [(192, 320), (192, 320)],
    "portrait": [(160, 96)],
    "landscape": [(70, 150)],
    "smallest": [(32, 32)],
    "narrow": [(20, 130)],
    "three sizes": [(64, 96), (130, 40), (97, 161)],
}
"""Heights and widths of the resized images of a batch."""


def detector(family: str, **more: Any) -> nn.Module:
    """A detector of random weights which finds many objects of all classes."""
    settings = {"backbone": "resnet10", "fpn_channels": 64, "min_size": 96, "max_size": 160}
    model = FAMILIES[family](len(CLASSES) + 1, **settings | SETTINGS[family] | more).eval()
    for name, value in model.named_parameters():
        if name.startswith(("head", "rpn.head")) or "predictor" in name:
            nn.init.normal_(value, std=0.05)
    if family == "faster_rcnn":
        nn.init.normal_(cast(Any, model).roi_heads.box_predictor.cls_score.weight, std=1.0)
    return model.requires_grad_(False)


def student(model: nn.Module) -> TrainedStudent:
    return TrainedStudent(model, CLASSES, (3, 7, 9), Path("best.ckpt"), "0" * 64, None)


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    """Smooth random pictures (3, H, W) in [0, 1]."""
    return [interpolate(torch.rand(1, 3, 7, 9), size, mode="bicubic")[0].clamp(0, 1) for size in sizes]


def expected(model: nn.Module, images: list[Tensor]) -> list[Prediction]:
    """What torchvision finds without resizing, but for the background that one-stage detectors may return."""
    transform = cast(Any, model).transform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "resize", lambda image, target: (image, target))
        found = model(images)
    return [{k: v[each["labels"] > 0] for k, v in each.items()} for each in found]


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The inputs of a graph: padding of any value on the right and at the bottom, sides multiples of 32."""
    height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (1, 2))
    batch = torch.full((len(images), 3, height, width), 0.7)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, torch.tensor([image.shape[1:] for image in images])


class Tally:
    """Counts the detections that both sides have: 0.01 pixels and 1e-4 apart at most, of the same label.

    Rounding may decide a tie otherwise, in one of hundreds; every mistake moves many.
    """

    def __init__(self) -> None:
        self.same = self.others = 0

    def add(self, found: list[Any], expected: Prediction) -> None:
        boxes, scores, labels = (torch.as_tensor(part) for part in found)
        close = (boxes[:, None] - expected["boxes"]).abs().amax(-1) < 1e-2
        close &= (scores[:, None] - expected["scores"]).abs() < 1e-4
        close &= labels[:, None] == expected["labels"]
        same = min(int(close.any(0).sum()), int(close.any(1).sum()))
        self.same += same
        self.others += len(scores) + len(expected["scores"]) - 2 * same

    def check(self) -> None:
        assert self.same > 200
        assert self.others <= 0.01 * self.same, self.others


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TrainedStudent, Path]]:
    """Export a family once."""
    files: dict[str, tuple[TrainedStudent, Path]] = {}

    def make(family: str) -> tuple[TrainedStudent, Path]:
        if family not in files:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp(family) / "student.onnx"
            files[family] = student(detector(family)), path
            logging.disable(logging.INFO)  # of which torch writes more here than it computes
            write_onnx(files[family][0], path)
            logging.disable(logging.NOTSET)
        return files[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_detects_what_torchvision_detects(family: str, made: Any):
    of, path = made(family)
    session = onnxruntime.InferenceSession(path)
    tally = Tally()
    for shapes in SHAPES.values():
        images = pictures(*shapes)
        batch, sizes = padded(images)
        outputs = session.run(None, {"images": batch.numpy(), "sizes": sizes.numpy()})
        count = outputs.pop()
        for i, found in enumerate(expected(of.detector, images)):
            assert count[i] > 0
            assert not any(part[i][count[i] :].any() for part in outputs)
            tally.add([part[i][: count[i]] for part in outputs], found)
    tally.check()


def test_what_a_user_must_know_is_in_the_file_and_beside_it(made: Any):
    of, path = made("retinanet")
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert {key: json.loads(value) for key, value in metadata.items()} == described
    assert described["classes"] == [
        {"label": 1, "name": "dog", "category_id": 3},
        {"label": 2, "name": 'a "b"\n', "category_id": 7},
        {"label": 3, "name": "käfer", "category_id": 9},
    ]
    size = described["preprocessing"]
    assert (size["min_size"], size["max_size"], size["pad_multiple"]) == (96, 160, 32)
    assert described["thresholds"] == {"score": 0.05, "nms_iou": 0.5, "detections_per_image": 100}
    assert described["checkpoint_sha256"] == of.sha256
    assert str(Path(__file__).parents[2]) not in path.read_bytes().decode("latin1")


def test_a_detector_without_a_graph_is_refused_with_the_reason():
    class Other(RetinaNet):
        pass

    own = detector("retinanet")
    own.__class__ = Other
    head = detector("fcos")
    cast(Any, head).head = nn.Identity()
    for model, reason in (
        (ssdlite320_mobilenet_v3_large(weights_backbone=None), "SSD cannot"),
        (maskrcnn_resnet50_fpn(weights_backbone=None), "masks"),
        (own, "no subclass"),
        (head, "its head is a Identity"),
        (retinanet_resnet50_fpn(weights_backbone=None, size_divisible=1), "size_divisible=1"),
    ):
        with pytest.raises(ConfigError, match=reason):
            check_exportable(model)

"""Exported graphs against torchvision's own forward, at sizes and batches that they were not traced with."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models.detection import (
    RetinaNet,
    maskrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)

from defeat.detectors.adapted import adapt
from defeat.detectors.inference import detect
from defeat.errors import ConfigError
from defeat.export.core import write_core
from defeat.export.graph import check_exportable, exportable
from defeat.export.graph_detector import load_onnx
from defeat.export.onnx_file import write_onnx
from defeat.export.student import TrainedStudent
from defeat.export.verify import verify
from defeat.types import Prediction
from tests.helpers.graphs import (
    CLASSES,
    FAMILIES,
    SETTINGS,
    Tally,
    detector,
    even_out,
    expected,
    padded,
    pictures,
    student,
    wake,
)

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SHAPES: dict[str, list[tuple[int, int]]] = {
    "as traced": [(192, 320), (192, 320)],
    "portrait": [(160, 96)],
    "landscape": [(70, 150)],
    "smallest": [(32, 32)],
    "narrow": [(20, 130)],
    "three sizes": [(64, 96), (130, 40), (97, 161)],
}
"""Heights and widths of the resized images of a batch."""

Graph = Callable[[torch.Tensor, torch.Tensor], Sequence[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[TrainedStudent, Path]]:
    """Export a family once."""
    files: dict[str, tuple[TrainedStudent, Path]] = {}

    def make(
        family: str, write: Callable[..., None] = write_onnx, **more: Any
    ) -> tuple[TrainedStudent, Path]:
        key = f"{family} {write.__name__} {more}"
        if key not in files:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp(family) / (
                "student.pt2" if write is write_core else "student.onnx"
            )
            files[key] = student(detector(family)), path
            logging.disable(logging.INFO)  # of which torch writes more here than it computes
            write(files[key][0], path, **more)
            logging.disable(logging.NOTSET)
        return files[key]

    return make


def documented(heading: str) -> str:
    """The Python under a heading of docs/deploy.md."""
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", re.split(r"\n#+ ", page.split(f"# {heading}\n")[1])[0], re.S)
    return str(code)


def by_onnx_runtime(path: Path) -> Graph:
    session = onnxruntime.InferenceSession(path)
    return lambda batch, sizes: session.run(None, {"images": batch.numpy(), "sizes": sizes.numpy()})


def outputs_and_expected(graph: Graph, model: nn.Module) -> Iterator[tuple[list[Any], Prediction]]:
    """What a graph gives for each picture of :data:`SHAPES`, and what torchvision detects there."""
    for shapes in SHAPES.values():
        images = pictures(*shapes)
        outputs = graph(*padded(images))
        for i, detections in enumerate(expected(model, images)):
            yield [part[i] for part in outputs], detections


@pytest.mark.parametrize("family", ["faster_rcnn", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_onnx_detects_what_torchvision_detects(family: str, made: Any):
    of, path = made(family)
    tally = Tally()
    for (*outputs, count), detections in outputs_and_expected(by_onnx_runtime(path), of.detector):
        assert count > 0
        assert not any(part[count:].any() for part in outputs)
        tally.add([part[:count] for part in outputs], detections)
    tally.check()


@pytest.mark.parametrize("computed", ["by torch", pytest.param("by ONNX Runtime", marks=pytest.mark.slow)])
def test_candidates_and_the_documented_numpy_are_what_torchvision_detects(computed: str, made: Any):
    if computed == "by torch":
        model: Any = detector("fcos")
        eager = exportable(model, nms=False)
        graph: Graph = lambda batch, sizes: [part.detach().numpy() for part in eager(batch, sizes)]  # noqa: E731
        limits = {"score": model.score_thresh, "nms_iou": model.nms_thresh}
        limits["detections_per_image"] = model.detections_per_img
    else:
        of, path = made("fcos", nms=False)
        model, graph = of.detector, by_onnx_runtime(path)
        limits = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["thresholds"]
    suppress: dict[str, Any] = {}
    exec(documented("Without NMS"), suppress)
    tally = Tally()
    for outputs, detections in outputs_and_expected(graph, model):
        tally.add(suppress["suppress"](*outputs, limits), detections)
    tally.check()


@pytest.mark.slow
def test_the_program_of_torch_export_takes_every_size(made: Any):
    of, path = made("retinanet", write_core)
    checks = verify(of, path, [(255 * x).byte() for x in pictures((90, 140), (30, 40))], format="core")
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classes", [1, 90])
def test_one_class_and_ninety(family: str, classes: int):
    model = FAMILIES[family](classes + 1, backbone="resnet10", fpn_channels=64, **SETTINGS[family]).eval()
    wake(model)
    graph = exportable(model, nms=True)
    tally = Tally()
    for shapes in ([(64, 96), (130, 40)], [(160, 224)], [(320, 256)]):
        images = pictures(*shapes)
        with torch.inference_mode():
            boxes, scores, labels, count = graph(*padded(images))
            for i, found in enumerate(expected(model, images)):
                tally.add([part[i][: count[i]] for part in (boxes, scores, labels)], found)
    tally.check(least=80)


def test_the_documented_script_runs_without_torch_and_without_this_project(made: Any, tmp_path: Path):
    of, path = made("faster_rcnn")
    (tmp_path / "student.onnx").symlink_to(path)
    (tmp_path / "detect.py").write_text(documented("ONNX Runtime in Python"), encoding="utf-8")
    for name in ("torch", "torchvision", "defeat"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    images = [(255 * x).byte() for x in pictures((300, 170), (50, 61), (97, 400))]
    names = [f"{i}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name)
    command = [sys.executable, "detect.py", *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    tally = Tally()
    for name, found in zip(names, detect(of.detector, images), strict=True):
        # Names of classes hold blanks, and one a line break.
        rows = re.findall(rf"^{name} (.*?) (\S+) (\S+) (\S+) (\S+) (\S+)$", done.stdout, re.S | re.M)
        labels = [CLASSES.index(row[0]) + 1 for row in rows]
        numbers = torch.tensor([[float(word) for word in row[1:]] for row in rows])
        tally.add([numbers[:, 1:], numbers[:, 0], labels], found)
    tally.check()


def test_what_a_user_must_know_is_in_the_file_and_beside_it(made: Any):
    of, path = made("faster_rcnn")
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "builder",
    [
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
    ],
)
def test_torchvisions_builders_as_onnx(builder: str, tmp_path: Path):
    build = getattr(torchvision.models.detection, builder)
    model = build(weights=None, weights_backbone=None, num_classes=91, min_size=128, max_size=224).eval()
    adapt(model)
    wake(model)
    even_out(model)
    of = TrainedStudent(model, tuple(map(str, range(1, 91))), tuple(range(1, 91)), tmp_path, "0" * 64, None)
    write_onnx(of, tmp_path / "student.onnx")
    images = [(255 * x).byte() for x in pictures((128, 200), (210, 130))]
    checks = verify(of, tmp_path / "student.onnx", images, format="onnx")
    assert all(check.passed for check in checks), checks
    tally = Tally()
    with torch.inference_mode():
        for found, true in zip(
            detect(load_onnx(tmp_path / "student.onnx"), images), detect(model, images), strict=True
        ):
            tally.add([found["boxes"], found["scores"], found["labels"]], true)
    tally.check(least=40)

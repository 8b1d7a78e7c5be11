"""Graphs of detectors with the anchors, strides, levels, RoIAlign and heads of other frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from defeat.export.graph import exportable
from defeat.export.graph.parts import with_constant_norms
from defeat.export.onnx_file import write_onnx
from tests.helpers.graphs import Tally, detector, expected, padded, pictures, student

FOREIGN: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"anchors": "float", "strides": "fixed", "roi_align": "aligned", "heads": "v2"},
    "retinanet": {"anchors": "float", "strides": "fixed", "extra_levels_from": "c5", "relu_before_p7": False},
    "fcos": {"strides": "fixed", "extra_levels_from": "c5"},
}


@pytest.mark.parametrize("family", FOREIGN)
def test_a_graph_detects_what_the_detector_does(family: str) -> None:
    """On pictures whose padded sides are no multiples of the topmost strides."""
    torch.manual_seed(0)
    model = detector(family, **FOREIGN[family])
    graph, tally = exportable(model, nms=True), Tally()
    with torch.inference_mode():
        for shapes in ([(160, 96)], [(64, 96), (130, 40), (97, 161)]):
            images = pictures(*shapes)
            *outputs, count = graph(*padded(images))
            for i, found in enumerate(expected(model, images)):
                tally.add([part[i][: count[i]] for part in outputs], found)
    tally.check()


def test_norms_with_statistics_are_the_same_to_the_bit_and_the_detector_stays() -> None:
    """Detectors of random weights have norms that change nothing."""
    model = detector("faster_rcnn", norm="frozen")
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms
    for norm in norms:
        for buffer in norm.buffers():
            buffer.uniform_(0.5, 2)
    (image,) = pictures((64, 96))
    with torch.inference_mode():
        expected_maps = model.backbone(image[None])  # type: ignore[operator]
        found = with_constant_norms(model).backbone(image[None])  # type: ignore[operator]
    assert all(found[name].equal(value) for name, value in expected_maps.items())
    assert norms == [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]


@pytest.mark.slow
def test_an_onnx_file_pools_aligned_regions(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = detector("faster_rcnn", **FOREIGN["faster_rcnn"])
    write_onnx(student(model), tmp_path / "student.onnx")
    session, tally = onnxruntime.InferenceSession(tmp_path / "student.onnx"), Tally()
    images = pictures((64, 96), (130, 40), (97, 161))
    batch, sizes = padded(images)
    *outputs, count = session.run(None, {"images": batch.numpy(), "sizes": sizes.numpy()})
    for i, found in enumerate(expected(model, images)):
        tally.add([part[i][: count[i]] for part in outputs], found)
    tally.check()

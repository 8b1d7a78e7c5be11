"""The formats of an export: how each is refused, written, compared and loaded again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from defeat.export.check import Check
from defeat.export.core import write_core
from defeat.export.extra import require_extra
from defeat.export.graph import check_exportable
from defeat.export.graph_detector import load_core, load_onnx
from defeat.export.load_script import NAME, load_script
from defeat.export.onnx_file import write_onnx
from defeat.export.student import TrainedStudent
from defeat.export.verify import verify
from defeat.export.weights import load_weights, verify_weights, write_weights


class Format(NamedTuple):
    """One format."""

    file: str
    """Name of its main file."""
    about: str
    """What that file is, in a phrase."""
    refuse: Callable[[TrainedStudent], object]
    """Raises a DefeatError with the reason where the student cannot be written so."""
    write: Callable[[TrainedStudent, Path], object]
    verify: Callable[[TrainedStudent, Path, Sequence[Tensor]], list[Check]]
    load: Callable[[Path], nn.Module]
    """Makes a detector of the file that takes and returns what torchvision's do."""
    usage: str
    """Lines of Python that run it."""
    others: Mapping[str, str] = MappingProxyType({})
    """Names of further files, and what they are."""
    runtime: str | None = None
    """What runs a graph, where it is timed; None for weights, which compute as the student does."""


_WEIGHTS_USAGE = """
import torch
from torchvision.io import ImageReadMode, decode_image

from load_student import CLASSES, load

detector = load("{file}")
with torch.inference_mode():
    found = detector([decode_image("photo.jpg", ImageReadMode.RGB) / 255])[0]
for box, score, label in zip(found["boxes"], found["scores"], found["labels"]):
    print(CLASSES[label], float(score), box.tolist())  # x1, y1, x2, y2 in pixels of the picture
"""

_ONNX_USAGE = """
import defeat  # or ONNX Runtime alone, with the resize and padding that student.json describes

model = defeat.load("student.onnx")
for found in model.predict(["photo.jpg"], score_threshold=0.5):
    print(found["boxes"], found["scores"], [model.classes[i - 1] for i in found["labels"]])
"""

_DENSE_USAGE = """
import onnxruntime

session = onnxruntime.InferenceSession("student.onnx")
# images (B, 3, H, W) and sizes (B, 2) as student.json describes; filtering and NMS are left to you
boxes, scores, labels = session.run(None, {"images": images, "sizes": sizes})
"""

_CORE_USAGE = """
import torch
import torchvision  # has operators of the graph

graph = torch.export.load("core.pt2").module(check_guards=False)
# images (B, 3, H, W) and sizes (B, 2) as core.json describes; filtering and NMS are left to you
boxes, scores, labels = graph(images, sizes)
"""

_DESCRIPTION = "classes, resize, padding, thresholds, inputs and outputs of the graph"


def formats(*, nms: bool) -> dict[str, Format]:
    """All formats by the names that the command takes.

    Args:
        nms: whether the graph of ``onnx`` ends with filtering and NMS.
    """
    return {
        "state_dict": _weights("student.pth", "the weights, by torch.save, with torchvision's names"),
        "safetensors": _weights("student.safetensors", "the weights, with torchvision's names"),
        "onnx": Format(
            "student.onnx",
            f"the detector as ONNX graph, {'from resized pictures to boxes' if nms else 'without NMS'}",
            _refuse_onnx,
            partial(write_onnx, nms=nms),
            partial(verify, format="onnx"),
            load_onnx,
            _ONNX_USAGE if nms else _DENSE_USAGE,
            {"student.json": _DESCRIPTION},
            "ONNX Runtime",
        ),
        "core": Format(
            "core.pt2",
            "the detector as graph of torch.export, without NMS",
            lambda student: check_exportable(student.detector),
            write_core,
            partial(verify, format="core"),
            load_core,
            _CORE_USAGE,
            {"core.json": _DESCRIPTION},
            "torch.export",
        ),
    }


def _weights(file: str, about: str) -> Format:
    return Format(
        file,
        about,
        partial(load_script, weights=file),
        write_weights,
        verify_weights,
        load_weights,
        _WEIGHTS_USAGE.format(file=file),
        {NAME: "loads the weights with torchvision alone"},
    )


def _refuse_onnx(student: TrainedStudent) -> None:
    require_extra("format=onnx", "onnx", "onnxscript", "onnxruntime")
    check_exportable(student.detector)

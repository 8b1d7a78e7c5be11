"""The formats of an export: how each is refused, written, compared and loaded again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from defeat.export.check import Check
from defeat.export.load_script import NAME, load_script
from defeat.export.student import TrainedStudent
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
    usage: str
    """Lines of Python that run it."""
    load: Callable[[Path], nn.Module] | None = None
    """Makes a detector of the file that takes and returns what torchvision's do; None where it is none."""
    others: Mapping[str, str] = MappingProxyType({})
    """Names of further files, and what they are."""
    exact: bool = True
    """Whether it computes with torch, to the bit what the student does."""
    runtime: str = "PyTorch"
    """What runs it."""


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


def _weights(file: str, about: str) -> Format:
    return Format(
        file,
        about,
        partial(load_script, weights=file),
        write_weights,
        verify_weights,
        _WEIGHTS_USAGE.format(file=file),
        load=load_weights,
        others={NAME: "loads the weights with torchvision alone"},
    )


def formats(*, nms: bool) -> dict[str, Format]:
    """All formats by the names that the command takes.

    Args:
        nms: whether the graph of ``onnx`` ends with filtering and NMS.
    """
    return {
        "state_dict": _weights("student.pth", "the weights, by torch.save, with torchvision's names"),
        "safetensors": _weights("student.safetensors", "the weights, with torchvision's names"),
    }

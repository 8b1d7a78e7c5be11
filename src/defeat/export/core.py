"""A student as a program of ``torch.export``, without its last non-maximum suppression."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from defeat.export.describe import describe, write_description
from defeat.export.graph import exportable
from defeat.export.graph_detector import DESCRIPTION
from defeat.export.onnx_file import dynamic_shapes, traced_inputs
from defeat.export.student import TrainedStudent
from defeat.io.atomic_write import replacing


def write_core(student: TrainedStudent, path: Path) -> None:
    """Write the graph that ends with all candidates, for any batch and size, as ``.pt2``.

    ``torch.export.load`` reads it where torchvision is imported, whose operators it holds; its
    ``module(check_guards=False)`` takes all sizes, while torch's guards, which have to do with the layout of
    memory, refuse those of which a level has a single row or column. What
    :func:`~defeat.export.describe.describe` says is inside as ``description.json``, and in a file of the same
    name that ends in ``.json``.

    Args:
        student: on the CPU, in eval mode.
        path: the file.

    Raises:
        ConfigError: see :func:`~defeat.export.graph.check_exportable`.
        StorageError: the file cannot be written.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision's operators, to their authors
        program = torch.export.export(
            exportable(student.detector, nms=False), traced_inputs(), dynamic_shapes=dynamic_shapes()
        )
    described = describe(student, nms=False)
    with replacing(path) as part, part.open("wb") as file:
        torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(described, ensure_ascii=False)})
    write_description(path, described)

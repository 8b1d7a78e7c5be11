"""A student as an ONNX file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from defeat.export.describe import describe, write_description
from defeat.export.graph import exportable, onnx_translation
from defeat.export.graph.exportable import MULTIPLE
from defeat.export.student import TrainedStudent
from defeat.io.atomic_write import replacing

OPSET = 18
"""Version of the ONNX operators."""
TRACED = (2, 3, 192, 320)
"""Shape of the images that a graph is traced with. Every level has more than one row and column, and no two
sizes are equal: nothing is then taken for constant or for the same."""

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "labels", "count")


def write_onnx(student: TrainedStudent, path: Path, *, nms: bool = True) -> None:
    """Write a graph for any batch and any size, see :func:`~defeat.export.graph.exportable`.

    What :func:`~defeat.export.describe.describe` says goes into its metadata, each value as JSON, and into a
    file of the same name that ends in ``.json``.

    Args:
        student: on the CPU, in eval mode.
        path: the file; the whole graph with its weights.
        nms: False ends the graph before the last suppression.

    Raises:
        ConfigError: see :func:`~defeat.export.graph.check_exportable`.
        StorageError: the file cannot be written.
    """
    import onnx

    described = describe(student, nms=nms)
    model = _to_onnx(exportable(student.detector, nms=nms), nms)
    _tidy(model, described)
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as part:
        onnx.save(model, part)
    write_description(path, described)


def traced_inputs() -> tuple[Tensor, Tensor]:
    """Make the images and sizes that a graph is traced with."""
    return torch.zeros(TRACED), torch.tensor([TRACED[2:]] * TRACED[0])


def dynamic_shapes() -> dict[str, Any]:
    """Tell which sizes of the inputs may be others than those of the trace."""
    batch = Dim("batch", min=1, max=1024)
    rows, columns = (Dim(name, min=1, max=1024) for name in ("rows", "columns"))
    return {"images": {0: batch, 2: MULTIPLE * rows, 3: MULTIPLE * columns}, "sizes": {0: batch}}


def _to_onnx(graph: nn.Module, nms: bool) -> Any:
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            graph,
            traced_inputs(),
            dynamo=True,
            dynamic_shapes=dynamic_shapes(),
            input_names=INPUTS,
            output_names=OUTPUTS if nms else OUTPUTS[:3],
            opset_version=OPSET,
            custom_translation_table=onnx_translation(),
            optimize=False,  # takes longer than all the rest, and runtimes do it when they load the file
            verbose=False,
        )
    assert program is not None
    fold_constants(program.model)
    remove_unused_nodes(program.model)
    return program.model_proto


def _tidy(model: Any, described: Mapping[str, Any]) -> None:
    """Name the sizes, leave out the traces of the exporter, and add the description."""
    names = {"images": ("batch", None, "height", "width"), "sizes": ("batch", None)}
    for value in model.graph.input:
        for size, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if name:
                size.dim_param = name
    del model.graph.value_info[:]
    model.graph.name = "detector"
    for item in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]  # with the paths of this machine's files
        item.doc_string = ""
    for key, value in described.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))

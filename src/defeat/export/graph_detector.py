"""Exported graphs behind the interface of torchvision's detectors: pictures in, detections out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from defeat.detectors.adapted import PixelTransform
from defeat.errors import WeightsError
from defeat.types import Prediction

Run = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Gives the outputs of a graph for ``images`` and ``sizes``."""

DESCRIPTION = "description.json"
"""Name of the file inside a ``.pt2`` file that holds what :func:`~defeat.export.describe.describe` says."""


class GraphDetector(nn.Module):
    """Runs a graph as its description says: resizes, pads, computes, and scales the boxes back.

    Args:
        run: computes the graph.
        described: what :func:`~defeat.export.describe.describe` says.
    """

    def __init__(self, run: Run, described: Mapping[str, Any]) -> None:
        super().__init__()
        self._run = run
        self.described = described
        size = described["preprocessing"]
        self.transform = PixelTransform(
            size["min_size"],
            size["max_size"],
            [0.0] * 3,  # the graph normalises
            [1.0] * 3,
            size["pad_multiple"],
            tuple(size["fixed_size"]) if size["fixed_size"] else None,
        )
        self.eval()

    def forward(self, images: Sequence[Tensor]) -> list[Prediction]:
        """Detect objects on (3, H, W) float32 images in [0, 1]; boxes are in pixels of these images."""
        resized, _ = self.transform(list(images))
        outputs = self._run(resized.tensors, torch.tensor(resized.image_sizes))
        finish = _cut if "count" in self.described["outputs"] else self._filter
        found = [finish(*row) for row in zip(*outputs, strict=True)]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        scaled: list[Prediction] = self.transform.postprocess(found, resized.image_sizes, sizes)
        return scaled

    def _filter(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Prediction:
        limits = self.described["thresholds"]
        above = scores > limits["score"]
        boxes, scores, labels = boxes[above], scores[above], labels[above]
        kept = batched_nms(boxes, scores, labels, limits["nms_iou"])[: limits["detections_per_image"]]
        kept = kept[labels[kept] > 0]
        return Prediction(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])


def load_onnx(path: Path) -> GraphDetector:
    """Load an ONNX file of this project; onnxruntime computes it on the CPU, with torch's number of threads.

    Raises:
        WeightsError: the file cannot be read, or says nothing about its preprocessing.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each of a dozen reasons
        raise WeightsError(f"{path} cannot be read by onnxruntime: {error}") from error
    described = _described(session.get_modelmeta().custom_metadata_map, path)

    def run(images: Tensor, sizes: Tensor) -> list[Tensor]:
        outputs = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return GraphDetector(run, described)


def load_core(path: Path) -> GraphDetector:
    """Load a ``.pt2`` file of this project.

    Raises:
        WeightsError: as :func:`load_onnx`.
    """
    files = {DESCRIPTION: ""}
    try:
        program = torch.export.load(path, extra_files=files)
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        raise WeightsError(f"{path} cannot be read by torch.export: {error}") from error
    described = json.loads(files[DESCRIPTION] or "{}")
    if "preprocessing" not in described:
        raise WeightsError(f"{path} does not say how images are prepared: it is no file of defeat-export")
    # The guards refuse sizes that the graph can compute, see write_core.
    module = program.module(check_guards=False)

    def run(images: Tensor, sizes: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = module(images, sizes)
        return outputs

    return GraphDetector(run, described)


def _described(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    if not {"preprocessing", "thresholds", "outputs"} <= metadata.keys():
        raise WeightsError(f"{path} does not say how images are prepared: it is no file of defeat-export")
    return {key: json.loads(value) for key, value in metadata.items()}


def _cut(boxes: Tensor, scores: Tensor, labels: Tensor, count: Tensor) -> Prediction:
    found = int(count)
    return Prediction(boxes=boxes[:found], scores=scores[:found], labels=labels[:found])

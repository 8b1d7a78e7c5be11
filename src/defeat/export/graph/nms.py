"""Non-maximum suppression of a whole batch and of all classes at once, as a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms


def nms_mask(boxes: Tensor, scores: Tensor, iou: float, least_score: float, most: int) -> Tensor:
    """Mark the boxes that non-maximum suppression keeps, for each group and class on its own.

    The arguments are those of ONNX's NonMaxSuppression, as which :func:`onnx_translation` exports it.

    Args:
        boxes: (G, N, 4) float32 xyxy in pixels.
        scores: (G, C, N) float32, of each box in each class.
        iou: a box that overlaps a better one by more than this is dropped.
        least_score: only boxes above this score take part.
        most: ONNX keeps at most so many boxes of a group and class, the best; PyTorch keeps all.

    Returns:
        (G, C, N) bool.
    """
    if torch.onnx.is_in_onnx_export():
        mask: Tensor = torch.ops.defeat.nms_mask(boxes, scores, iou, least_score, most)
        return mask
    group, label, box = torch.where(scores > least_score)  # (S,) each
    # Groups and classes are moved apart, so that one call suffices; in float64 no coordinate is rounded.
    span = (boxes.max() - boxes.min()).double() + 1
    moved = boxes[group, box].double() + ((group * scores.shape[1] + label) * span)[:, None]  # (S, 4)
    kept = nms(moved, scores[group, label, box].double(), iou)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.index_put((group[kept], label[kept], box[kept]), torch.ones_like(kept, dtype=torch.bool))


@torch.library.custom_op("defeat::nms_mask", mutates_args=())
def _operator(boxes: Tensor, scores: Tensor, iou: float, least_score: float, most: int) -> Tensor:
    """:func:`nms_mask` as one operator, whose result has a known shape, for the exporter to translate."""
    raise NotImplementedError("it exists in graphs for ONNX alone")


@_operator.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, least_score: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def onnx_translation() -> dict[Callable, Callable]:
    """Return the ``custom_translation_table`` of ``torch.onnx.export`` with which it knows the operator."""
    import onnxscript

    op: Any = onnxscript.opset18

    def translate(boxes: Any, scores: Any, iou: float, least_score: float, most: int) -> Any:
        numbers = [
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[least_score]),
        ]
        selected = op.NonMaxSuppression(boxes, scores, *numbers)  # (S, 3): group, class, box
        rows = op.Slice(op.Shape(selected), [0], [1])
        nothing = op.Expand(op.Constant(value_ints=[0]), op.Shape(scores))  # (G, C, N)
        kept = op.ScatterND(nothing, selected, op.Expand(op.Constant(value_ints=[1]), rows))
        return op.Cast(kept, to=9)  # bool

    return {torch.ops.defeat.nms_mask.default: translate}

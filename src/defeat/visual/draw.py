"""Boxes drawn on one image."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from defeat.types import Prediction, Target
from defeat.visual.matching import Matching
from defeat.visual.palette import FALSE, IGNORED, class_colour
from defeat.visual.strokes import Box, Style, rectangle, tag

READABLE = 256
"""px; images are enlarged to at least this much on their longer side."""


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    scores: Tensor | None = None,
    ignore: Tensor | None = None,
    factor: float | None = None,
) -> Image.Image:
    """Draw boxes in the colours of their classes, each with its name; small images come out enlarged.

    Args:
        image: (3, H, W) uint8 RGB.
        boxes: (N, 4) xyxy pixels of ``image``.
        labels: (N,) 1..K.
        classes: the K names.
        scores: (N,) in [0, 1], written behind the names.
        ignore: (N,) bool, boxes drawn grey and dashed.
        factor: enlargement; by default the smallest whole number that makes the longer side 256 px or more.

    Raises:
        ValueError: the image is no (3, H, W) uint8 tensor.
    """
    if factor is None:
        factor = max(1, -(-READABLE // max(image.shape[1:])))
    canvas = enlarged(image, factor)
    draw, taken = ImageDraw.Draw(canvas), list[Box]()
    skip = [False] * len(boxes) if ignore is None else ignore.tolist()
    places = [place(box, factor, canvas.size) for box in boxes.tolist()]
    for spot, label, ignored in zip(places, labels.tolist(), skip, strict=True):
        if ignored:
            rectangle(draw, spot, IGNORED, Style.DASHED)
        else:
            rectangle(draw, spot, class_colour(label))
    for i, (spot, label) in enumerate(zip(places, labels.tolist(), strict=True)):
        name = classes[label - 1] if scores is None else f"{classes[label - 1]} {float(scores[i]):.2f}"
        tag(draw, spot, name, IGNORED if skip[i] else class_colour(label), taken)
    return canvas


def draw_judged(
    image: Tensor,
    prediction: Prediction,
    target: Target,
    matching: Matching,
    classes: Sequence[str],
    factor: float,
) -> Image.Image:
    """Draw detections by what became of them: hits solid, missed ground truth dotted, false ones dashed red.

    Only false detections are named: the colours tell the classes of the others.

    Args:
        image: (3, H, W) uint8 RGB.
        prediction: detections in pixels of ``image``.
        target: ground truth in the same pixels.
        matching: of :func:`defeat.visual.matching.match` for these two.
        classes: the K names.
        factor: enlargement.
    """
    canvas = enlarged(image, factor)
    draw, taken = ImageDraw.Draw(canvas), list[Box]()
    shown = [place(box, factor, canvas.size) for box in prediction["boxes"].tolist()]
    labels = prediction["labels"].tolist()
    for i in matching.missed.nonzero().flatten().tolist():
        spot = place(target["boxes"][i].tolist(), factor, canvas.size)
        rectangle(draw, spot, class_colour(int(target["labels"][i])), Style.DOTTED)
    for i in matching.excused.nonzero().flatten().tolist():
        rectangle(draw, shown[i], IGNORED, Style.DASHED)
    for i in matching.hit.nonzero().flatten().tolist():
        rectangle(draw, shown[i], class_colour(labels[i]))
    wrong = matching.false.nonzero().flatten().tolist()
    for i in wrong:
        rectangle(draw, shown[i], FALSE, Style.DASHED)
    for i in wrong:
        tag(draw, shown[i], classes[labels[i] - 1], FALSE, taken, size=11)
    return canvas


def enlarged(image: Tensor, factor: float) -> Image.Image:
    """A (3, H, W) uint8 tensor as a picture, ``factor`` times the size.

    Raises:
        ValueError: it is something else.
    """
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
        raise ValueError(f"expected a (3, H, W) uint8 image, got {tuple(image.shape)} {image.dtype}")
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


def place(box: Sequence[float], factor: float, size: tuple[int, int]) -> Box:
    """The pixels of a canvas of ``size`` (w, h) that a box covers; at least 3 x 3, so that none vanishes."""
    x1, y1 = (max(0, min(round(v * factor), limit - 3)) for v, limit in zip(box[:2], size, strict=True))
    x2, y2 = (min(round(v * factor), limit) - 1 for v, limit in zip(box[2:], size, strict=True))
    return x1, y1, max(x2, x1 + 2), max(y2, y1 + 2)

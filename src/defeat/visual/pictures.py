"""Detections drawn into pictures, at the pictures' own size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from defeat.types import Prediction
from defeat.visual.boxes import class_colour, class_label, ink_on


def draw_prediction(image: Tensor, prediction: Prediction, classes: Sequence[str]) -> Image.Image:
    """Draw boxes in the colours of their classes, each with its name and score, the best on top.

    Args:
        image: (3, H, W) uint8 RGB; it is left as it is.
        prediction: boxes in pixels of the image, best first, on the CPU.
        classes: the K names, label 1 first.

    Returns:
        An RGB image of the same size.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    side = min(picture.size)
    width, letters = max(2, round(side / 300)), font(max(10, round(side / 45)))
    draw = ImageDraw.Draw(picture)
    drawn = [
        (box, class_colour(label), f"{class_label(classes[label - 1])} {score:.2f}")
        for box, label, score in zip(
            prediction["boxes"].flip(0).tolist(),
            prediction["labels"].flip(0).tolist(),
            prediction["scores"].flip(0).tolist(),
            strict=True,
        )
    ]
    for box, colour, _ in drawn:
        draw.rectangle(box, outline=colour, width=width)
    for box, colour, name in drawn:  # names go over all boxes
        _write_name(draw, box, name, colour, letters)
    return picture


def _write_name(
    draw: ImageDraw.ImageDraw, box: Sequence[float], name: str, colour: str, font: ImageFont.FreeTypeFont
) -> None:
    """Write on a plate above the box, inside of it at the picture's upper edge, never beyond the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
    margin = max(1, round(font.size / 8))
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    picture_width, _ = draw.im.size
    x = max(0.0, min(box[0], picture_width - width))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + margin - left, y + margin - top), name, fill=ink_on(colour), font=font)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, which is there on every machine."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)

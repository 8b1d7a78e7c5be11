"""Rectangles in several line styles and small name tags, legible on any picture."""

from __future__ import annotations

from enum import Enum
from functools import cache

from PIL import ImageDraw, ImageFont

from defeat.visual.palette import SHADOW, Colour, text_colour

Box = tuple[int, int, int, int]
"""xyxy px of the canvas; the last pixels belong to the box."""


class Style(Enum):
    """A line as lengths of dash and gap in line widths; solid has no gap."""

    SOLID = (1, 0)
    DASHED = (4, 3)
    DOTTED = (1, 2)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface that comes with Pillow, at ``size`` px."""
    return ImageFont.load_default(size)


def rectangle(
    draw: ImageDraw.ImageDraw, box: Box, colour: Colour, style: Style = Style.SOLID, width: int = 2
) -> None:
    """Draw a box's edge, inside of the box, over a dark shadow one pixel wider on both sides."""
    x1, y1, x2, y2 = box
    inner = width - 1
    sides = [
        (x1, y1, x2, y1 + inner),
        (x1, y2 - inner, x2, y2),
        (x1, y1, x1 + inner, y2),
        (x2 - inner, y1, x2, y2),
    ]
    dashes = [dash for side in sides for dash in _dashes(side, style, width)]
    for left, top, right, bottom in dashes:
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=SHADOW)
    for dash in dashes:
        draw.rectangle(dash, fill=colour)


def _dashes(side: Box, style: Style, width: int) -> list[Box]:
    """Cut one side, a bar ``width`` px thick, into its dashes; a side never lacks both its corners."""
    x1, y1, x2, y2 = side
    x2, y2 = max(x1, x2), max(y1, y2)
    on, off = (width * n for n in style.value)
    if not off:
        return [(x1, y1, x2, y2)]
    if x2 - x1 >= y2 - y1:
        return [(x, y1, min(x + on - 1, x2), y2) for x in range(x1, x2 + 1, on + off)]
    return [(x1, y, x2, min(y + on - 1, y2)) for y in range(y1, y2 + 1, on + off)]


def tag(
    draw: ImageDraw.ImageDraw, anchor: Box, text: str, colour: Colour, taken: list[Box], size: int = 12
) -> None:
    """Write ``text`` on a plate by the box ``anchor``, where it covers no plate of ``taken``; adds its own.

    Tried in this order: above, below, inside at the top, inside at the bottom; each from the left first.
    """
    width, height = int(font(size).getlength(text)) + 7, int(size * 1.25)
    canvas_width, canvas_height = draw.im.size
    x1, y1, x2, y2 = anchor
    places = [
        (x, y, x + width, y + height)
        for y in (y1 - height - 1, y2 + 2, y1 + 2, y2 - height - 2)
        for x in (max(0, min(x1, canvas_width - width - 1)), max(0, x2 - width))
    ]
    inside = [p for p in places if p[1] >= 0 and p[3] < canvas_height]
    free = [p for p in inside if not any(_meet(p, other) for other in taken)]
    plate = (free or inside or places)[0]
    draw.rectangle(plate, fill=colour)
    middle = (plate[1] + plate[3]) / 2
    draw.text((plate[0] + 3, middle), text, font=font(size), fill=text_colour(colour), anchor="lm")
    taken.append(plate)


def _meet(first: Box, second: Box) -> bool:
    return first[0] <= second[2] and second[0] <= first[2] and first[1] <= second[3] and second[1] <= first[3]

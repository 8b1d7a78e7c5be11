"""The key under a sheet of pictures: colours of the classes, and what the line styles mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from defeat.visual.palette import FADED, FALSE, IGNORED, INK, PAPER, Colour, class_colour
from defeat.visual.strokes import Style, font, rectangle

LINE, SWATCH, SPACE, SIZE = 26, 22, 18, 14


class _Entry(NamedTuple):
    text: str
    colour: Colour
    style: Style
    filled: bool


def draw_legend(classes: Sequence[str], width: int, threshold: float, iou: float) -> Image.Image:
    """A picture ``width`` px wide, as high as its lines need; entries that do not fit go to the next line."""
    names = [_Entry(name, class_colour(i), Style.SOLID, True) for i, name in enumerate(classes, start=1)]
    styles = [
        _Entry(f"found (score from {threshold:g}, IoU from {iou:g})", FADED, Style.SOLID, False),
        _Entry("missed", FADED, Style.DOTTED, False),
        _Entry("false, with the class it was taken for", FALSE, Style.DASHED, False),
        _Entry("crowd or difficult: not judged", IGNORED, Style.DASHED, False),
    ]
    lines = _wrap(names, width) + _wrap(styles, width)
    legend = Image.new("RGB", (width, LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(legend)
    for number, line in enumerate(lines):
        x = 0
        for entry in line:
            _draw_entry(draw, entry, x, LINE * number)
            x += _width(entry)
    return legend


def _width(entry: _Entry) -> int:
    return SWATCH + 7 + int(font(SIZE).getlength(entry.text)) + SPACE


def _wrap(entries: Sequence[_Entry], width: int) -> list[list[_Entry]]:
    lines: list[list[_Entry]] = [[]]
    used = 0
    for entry in entries:
        needed = _width(entry)
        if lines[-1] and used + needed - SPACE > width:
            lines.append([])
            used = 0
        lines[-1].append(entry)
        used += needed
    return lines


def _draw_entry(draw: ImageDraw.ImageDraw, entry: _Entry, x: int, top: int) -> None:
    box = (x + 1, top + 6, x + SWATCH - 2, top + LINE - 7)
    if entry.filled:
        draw.rectangle(box, fill=entry.colour, outline=INK)
    else:
        rectangle(draw, box, entry.colour, entry.style)
    draw.text((x + SWATCH + 7, top + LINE / 2), entry.text, font=font(SIZE), fill=INK, anchor="lm")

"""Images with boxes, drawn into axes of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from defeat.io.text import printable

LineStyle = Literal["solid", "dashed", "dotted"]

FALSE_COLOUR = "#e61923"
"""Red is for false detections alone."""
IGNORED_COLOUR = "#bebebe"
INK, FADED_INK = "#23262a", "#6e7378"

# Apart in hue and in lightness, after Okabe and Ito; their vermilion is too close to red.
_CLASS_COLOURS = (
    *("#56b4e9", "#f0e442", "#00be87", "#e69f00", "#cc79bb"),
    *("#ffffff", "#806eff", "#96e63c", "#00e1eb", "#a06e3c"),
)
_GOLDEN_RATIO = 0.6180339887
_SHADOW = [withStroke(linewidth=3.4, foreground="#0c0c0c")]  # legible on any picture


def class_colour(label: int) -> str:
    """Return the colour of label 1..K; beyond ten classes some will be close, but none is red.

    Raises:
        ValueError: ``label`` is below 1.
    """
    if label < 1:
        raise ValueError(f"labels start at 1, got {label}")
    if label <= len(_CLASS_COLOURS):
        return _CLASS_COLOURS[label - 1]
    hue = 0.09 + 0.80 * ((label - len(_CLASS_COLOURS)) * _GOLDEN_RATIO % 1.0)  # without the reds at both ends
    return to_hex(colormaps["hsv"](hue))


def ink_on(colour: str) -> str:
    """Return black or white, whichever is legible on a colour."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def class_label(name: str) -> str:
    """Write the name of a class as matplotlib draws it: on one line, and also where it begins with ``_``."""
    text = printable(name)
    return f" {text}" if text.startswith("_") else text  # matplotlib leaves such labels out of legends


def draw_boxes(
    axes: Axes,
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    scores: Tensor | None = None,
    ignore: Tensor | None = None,
) -> None:
    """Draw an image and boxes in the colours of their classes, each with its name.

    Args:
        axes: where to draw.
        image: (3, H, W) uint8 RGB.
        boxes: (N, 4) xyxy pixels of ``image``.
        labels: (N,) 1..K.
        classes: the K names.
        scores: (N,) in [0, 1], written behind the names.
        ignore: (N,) bool, boxes drawn grey and dashed.

    Raises:
        ValueError: the image is no (3, H, W) uint8 tensor.
    """
    show_image(axes, image)
    ignored = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else ignore
    for i, (box, label) in enumerate(zip(boxes, labels.tolist(), strict=True)):
        name = class_label(classes[label - 1])
        name = name if scores is None else f"{name} {float(scores[i]):.2f}"
        if ignored[i]:
            outline(axes, box, IGNORED_COLOUR, "dashed", name)
        else:
            outline(axes, box, class_colour(label), "solid", name)


def show_image(axes: Axes, image: Tensor) -> None:
    """Show a (3, H, W) uint8 RGB image; a pixel covers the same unit square as in boxes.

    Raises:
        ValueError: it is something else.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"expected a (3, H, W) uint8 image, got {tuple(image.shape)} {image.dtype}")
    height, width = image.shape[1:]
    axes.imshow(image.permute(1, 2, 0).cpu().numpy(), extent=(0, width, height, 0), interpolation="lanczos")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def outline(axes: Axes, box: Tensor, colour: str, style: LineStyle = "solid", name: str = "") -> None:
    """Draw the edge of a (4,) xyxy box over a dark shadow, with a name on a plate if there is one."""
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(
        Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=colour,
            linestyle=style,
            linewidth=1.8,
            path_effects=_SHADOW,
        )
    )
    if name:
        _write_name(axes, (x1, y1, x2, y2), name, colour)


def _write_name(axes: Axes, box: tuple[float, float, float, float], name: str, colour: str) -> None:
    """Write on a plate above the box, below its edge at the top of the picture, inside of the picture."""
    (_, right), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    x1, x2, y1 = max(box[0], 0.0), min(box[2], right), max(box[1], 0.0)
    in_left_half = x1 + x2 < right
    has_room_above = y1 > 0.08 * bottom
    axes.annotate(
        name,
        (x1 if in_left_half else x2, y1),
        xytext=(0, 2 if has_room_above else -2),
        textcoords="offset points",
        ha="left" if in_left_half else "right",
        va="bottom" if has_room_above else "top",
        fontsize=7,
        color=ink_on(colour),
        bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
        parse_math=False,
    ).set_in_layout(False)

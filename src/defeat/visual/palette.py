"""Colours of classes: the same in every picture, and never the colour of an error."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

FALSE: Colour = (230, 25, 35)
"""Red is for false detections alone."""
IGNORED: Colour = (190, 190, 190)
INK: Colour = (35, 38, 42)
FADED: Colour = (110, 115, 120)
PAPER: Colour = (255, 255, 255)
SHADOW: Colour = (12, 12, 12)

# Apart in hue and in lightness, after Okabe and Ito; their vermilion is too close to red.
_FIRST: tuple[Colour, ...] = (
    (86, 180, 233),
    (240, 228, 66),
    (0, 190, 135),
    (230, 159, 0),
    (204, 121, 187),
    (255, 255, 255),
    (128, 110, 255),
    (150, 230, 60),
    (0, 225, 235),
    (160, 110, 60),
)
_GOLDEN = 0.6180339887


def class_colour(label: int) -> Colour:
    """RGB, 0..255, of label 1..K; as many classes as wanted, though beyond ten some will be close.

    Raises:
        ValueError: ``label`` is below 1.
    """
    if label < 1:
        raise ValueError(f"labels start at 1, got {label}")
    if label <= len(_FIRST):
        return _FIRST[label - 1]
    place = label - len(_FIRST)
    hue = 0.09 + 0.80 * (place * _GOLDEN % 1.0)  # leaves out the reds at both ends
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45 + 0.1 * (place % 3), 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever can be read on ``background``."""
    red, green, blue = background
    return SHADOW if 299 * red + 587 * green + 114 * blue > 125_000 else PAPER

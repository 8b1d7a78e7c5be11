"""The eight classes as polygons around the origin, about one unit in radius, and how shapes become pixels.

A shape is a list of parts painted one after the other, so a ring is a disc with a smaller disc taken out.
Every class comes in several builds (wall thickness, arm width, ...): only the shape tells the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CLASSES = ("disc", "square", "triangle", "star", "ring", "cross", "crescent", "arrow")

OVERSAMPLING = 4
COVERED = 64
"""A pixel belongs to an object when at least a quarter of it is covered: alpha 64 of 255."""

Points = NDArray[np.float64]


class Part(NamedTuple):
    """One step of painting a shape."""

    points: Points
    """(N, 2) xy."""
    value: int = 255
    """255 paints, 0 takes away."""
    width: float = 0.0
    """0 fills the polygon; otherwise the points are an open line this wide."""


Shape = list[Part]


def polar(angles: list[float], radii: list[float]) -> Points:
    """(N, 2) points at these angles (turns, not radians) and radii."""
    # Rounded, so that the last bit of one machine's cosine cannot move a vertex on another.
    turns = [2 * math.pi * a for a in angles]
    pairs = zip(turns, radii, strict=True)
    return np.array([(round(r * math.cos(t), 6), round(r * math.sin(t), 6)) for t, r in pairs])


def circle(radius: float, x: float = 0.0, corners: int = 40) -> Points:
    """A polygon close enough to a circle to look round at 100 px, shifted by ``x``."""
    points = polar([i / corners for i in range(corners)], [radius] * corners)
    points[:, 0] += x
    return points


def _disc(_: float) -> Shape:
    return [Part(circle(0.95))]


def _square(_: float) -> Shape:
    return [Part(polar([0.125, 0.375, 0.625, 0.875], [1.15] * 4))]


def _triangle(t: float) -> Shape:
    spread = 0.30 + 0.06 * t
    return [Part(polar([0.0, spread, 1 - spread], [1.15] * 3))]


def _star(t: float) -> Shape:
    radii = [1.15, 0.42 + 0.12 * t] * 5
    return [Part(polar([i / 10 for i in range(10)], radii))]


def _ring(t: float) -> Shape:
    return [Part(circle(1.0)), Part(circle(0.48 + 0.17 * t), value=0)]


def _cross(t: float) -> Shape:
    arm, half = 1.08, 0.26 + 0.12 * t
    bar = np.array([(-arm, -half), (arm, -half), (arm, half), (-arm, half)])
    return [Part(bar), Part(bar[:, ::-1].copy())]


def _crescent(t: float) -> Shape:
    return [Part(circle(1.1)), Part(circle(0.92, x=0.46 + 0.16 * t), value=0)]


def _arrow(t: float) -> Shape:
    half, neck = 0.20 + 0.12 * t, 0.05
    head = [(neck, -0.85), (1.15, 0.0), (neck, 0.85)]
    shaft = [(neck, half), (-1.1, half), (-1.1, -half), (neck, -half)]
    return [Part(np.array(head + shaft))]


_BUILDERS: tuple[Callable[[float], Shape], ...] = (
    _disc,
    _square,
    _triangle,
    _star,
    _ring,
    _cross,
    _crescent,
    _arrow,
)
BUILDS: tuple[tuple[Shape, ...], ...] = tuple(tuple(b(t) for t in (0.0, 0.5, 1.0)) for b in _BUILDERS)
"""``BUILDS[class position]``: the builds of one class, from slim to stout."""


def transform(
    shape: Shape, radius: float, turn: float, squeeze: float, x: float = 0.0, y: float = 0.0
) -> Shape:
    """The shape at ``radius`` px, flattened by ``squeeze`` (1 = not), rotated by ``turn`` and moved."""
    cos, sin = round(math.cos(2 * math.pi * turn), 6), round(math.sin(2 * math.pi * turn), 6)
    moved = []
    for part in shape:
        px, py = part.points[:, 0] * radius, part.points[:, 1] * (radius * squeeze)
        # Written out: a matrix product may be summed in another order on another processor.
        points = np.stack([px * cos - py * sin + x, px * sin + py * cos + y], axis=1)
        moved.append(Part(points, part.value, part.width * radius))
    return moved


class Stamp(NamedTuple):
    """A shape as pixels, cut to what is covered."""

    alpha: NDArray[np.uint8]
    """(h, w) coverage, 0..255."""
    x: int
    """Left edge, relative to the centre the shape was drawn around."""
    y: int
    """Upper edge, likewise."""


def rasterise(shape: Shape) -> Stamp | None:
    """Paint a shape given in pixels around (0, 0); None when it covers no pixel by a quarter."""
    reach = max(float(np.abs(part.points).max()) + part.width for part in shape)
    half = int(reach) + 2
    side = 2 * half * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for part in shape:
        corners = np.rint((part.points + half) * OVERSAMPLING).astype(np.int64).ravel().tolist()
        if part.width:
            width = max(1, round(part.width * OVERSAMPLING))
            draw.line(corners, fill=part.value, width=width, joint="curve")
        else:
            draw.polygon(corners, fill=part.value)
    alpha = np.asarray(canvas.reduce(OVERSAMPLING))
    return _cut(alpha, half)


def _cut(alpha: NDArray[np.uint8], half: int) -> Stamp | None:
    covered = alpha >= COVERED
    if not covered.any():
        return None
    left, top, right, bottom = extent(covered)
    return Stamp(alpha[top:bottom, left:right], left - half, top - half)


def extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The tight xyxy box of a mask (h, w) that holds at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

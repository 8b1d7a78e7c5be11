"""Things that are no class: strokes, outlines, blobs, and pieces of the classes. They are never annotated."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from defeat.data.scenes.shapes import Part, Shape, circle, polar


def _line(rng: np.random.Generator) -> Shape:
    bend = rng.uniform(-0.3, 0.3)
    return [Part(np.array([(-1.6, 0.0), (0.0, bend), (1.6, 0.0)]), width=rng.uniform(0.05, 0.16))]


def _arc(rng: np.random.Generator) -> Shape:
    """A ring with a gap, from a thin arc to most of the ring."""
    span, steps = rng.uniform(0.25, 0.6), 16
    points = polar([span * i / steps for i in range(steps + 1)], [0.9] * (steps + 1))
    return [Part(points, width=rng.uniform(0.08, 0.34))]


def _outline(rng: np.random.Generator) -> Shape:
    corners = int(rng.integers(3, 7))
    points = polar([i / corners for i in range(corners)], [1.0] * corners)
    hole = rng.uniform(0.7, 0.88)
    return [Part(points), Part(points * hole, value=0)]


def _blob(rng: np.random.Generator) -> Shape:
    """An uneven closed curve: two waves on a circle."""
    corners = 36
    low, high = rng.uniform(0.15, 0.35), rng.uniform(0.05, 0.18)
    shift, waves = rng.uniform(0, 1), int(rng.integers(2, 4))
    angles = [i / corners for i in range(corners)]
    radii = [
        0.8
        + low * math.sin(2 * math.pi * (waves * a + shift))
        + high * math.sin(2 * math.pi * (2 * waves + 1) * a)
        for a in angles
    ]
    return [Part(polar(angles, radii))]


def _writing(rng: np.random.Generator) -> Shape:
    """A row of letters of no alphabet."""
    glyphs = int(rng.integers(2, 6))
    shape = []
    for i in range(glyphs):
        left = -1.4 + 2.8 * i / glyphs
        points = rng.integers(0, 4, (4, 2)) / 3.0 * np.array([2.0 / glyphs, 0.9])
        shape.append(Part(points + np.array([left, -0.45]), width=0.12))
    return shape


def _half_disc(rng: np.random.Generator) -> Shape:
    span, steps = rng.uniform(0.25, 0.5), 20
    return [Part(polar([span * i / steps for i in range(steps + 1)], [1.0] * (steps + 1)))]


def _chevron(_: np.random.Generator) -> Shape:
    """An arrow's head without its shaft."""
    return [Part(np.array([(-0.6, -1.0), (0.9, 0.0), (-0.6, 1.0), (-0.1, 0.0)]))]


def _broken_cross(rng: np.random.Generator) -> Shape:
    """A cross that lost an arm (a T), or two neighbouring ones (an L)."""
    half = rng.uniform(0.24, 0.38)
    end = half if rng.random() < 0.5 else 1.1
    bar = np.array([(-half, -1.1), (half, -1.1), (half, 1.1), (-half, 1.1)])
    foot = np.array([(-half, 1.1 - 2 * half), (1.1, 1.1 - 2 * half), (1.1, 1.1), (-half, 1.1)])
    if end == half:
        return [Part(bar), Part(foot)]
    return [Part(bar), Part(np.array([(-half, -half), (1.1, -half), (1.1, half), (-half, half)]))]


def _spikes(rng: np.random.Generator) -> Shape:
    """Star-like, with too few or too many uneven points."""
    count = int(rng.choice([3, 4, 8]))
    radii = [r for _ in range(count) for r in (rng.uniform(0.8, 1.2), rng.uniform(0.2, 0.4))]
    return [Part(polar([i / (2 * count) for i in range(2 * count)], radii))]


def _lens(rng: np.random.Generator) -> Shape:
    """A disc bitten from both sides."""
    shift = rng.uniform(1.2, 1.45)
    return [Part(circle(1.0)), Part(circle(1.0, x=shift), value=0), Part(circle(1.0, x=-shift), value=0)]


_KINDS: tuple[Callable[[np.random.Generator], Shape], ...] = (
    _line,
    _arc,
    _outline,
    _blob,
    _writing,
    _half_disc,
    _chevron,
    _broken_cross,
    _spikes,
    _lens,
)


def distractor(rng: np.random.Generator) -> Shape:
    """One distractor in unit coordinates, like a class's shape."""
    return _KINDS[int(rng.integers(len(_KINDS)))](rng)

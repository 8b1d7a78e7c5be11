"""Grey patterns and their colours, in integer arithmetic: the same bytes on every processor."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.uint8]
"""(h, w), 0..255: how far a pixel is from one colour to the other."""

_TURN = 1 << 12  # steps of one period of a pattern


@cache
def _grid(height: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    y, x = np.indices((height, width), dtype=np.int32)
    return y, x


@cache
def _waves() -> NDArray[np.uint8]:
    """(3, _TURN): sine, triangle and square wave."""
    steps = range(_TURN)
    sine = [round(127.5 + 127 * math.sin(2 * math.pi * i / _TURN)) for i in steps]
    triangle = [min(i, _TURN - i) * 255 // (_TURN // 2) for i in steps]
    square = [255 * (i < _TURN // 2) for i in steps]
    return np.array([sine, triangle, square], dtype=np.uint8)


def _phase(rng: np.random.Generator, height: int, width: int, period: float) -> NDArray[np.int32]:
    """A ramp in a random direction; it passes _TURN once every ``period`` px."""
    turn = rng.uniform(0, 2 * math.pi)
    step_x, step_y = (round(_TURN / period * f(turn)) for f in (math.cos, math.sin))
    y, x = _grid(height, width)
    return x * step_x + y * step_y + int(rng.integers(_TURN))


def noise(rng: np.random.Generator, height: int, width: int) -> Field:
    """Smooth noise of three octaves, the finest about 3 px."""
    total = np.zeros((height, width), dtype=np.uint16)
    cell = rng.uniform(8, 40)
    for weight in (4, 2, 1):
        shape = (int(height / cell) + 2, int(width / cell) + 2)
        coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        total += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(
            np.uint16
        )
        cell = max(3.0, cell / 2.5)
    return (total // 7).astype(np.uint8)


def blotches(rng: np.random.Generator, height: int, width: int) -> Field:
    """Noise with its contrast driven up: patches with rather sharp edges."""
    soft = noise(rng, height, width).astype(np.int32)
    gain = int(rng.integers(3, 12))
    return np.clip((soft - 128) * gain + 128, 0, 255).astype(np.uint8)


def stripes(rng: np.random.Generator, height: int, width: int) -> Field:
    """Parallel bands, soft or sharp."""
    ramp = _phase(rng, height, width, rng.uniform(4, 36))
    field: Field = _waves()[int(rng.integers(3))][ramp & (_TURN - 1)]
    return field


def checker(rng: np.random.Generator, height: int, width: int) -> Field:
    """Rotated checks, the two directions not quite square to each other."""
    period = rng.uniform(6, 40)
    half = _TURN // 2
    first = _phase(rng, height, width, period) & half
    second = _phase(rng, height, width, period) & half
    return np.where(first ^ second, 255, 0).astype(np.uint8)


def gradient(rng: np.random.Generator, height: int, width: int) -> Field:
    """One slow ramp, or one around a point."""
    if rng.random() < 0.5:
        ramp = _phase(rng, height, width, 2.2 * max(height, width))
        field: Field = _waves()[1][ramp & (_TURN - 1)]
        return field
    y, x = _grid(height, width)
    dy, dx = y - int(rng.integers(height)), x - int(rng.integers(width))
    squared = (dy * dy + dx * dx) * 255 // (height * height + width * width) * 2
    rings: Field = np.minimum(squared, 255).astype(np.uint8)
    return rings


def mottle(rng: np.random.Generator, height: int, width: int) -> Field:
    """Stripes bent by noise, like wood or marble."""
    bend = noise(rng, height, width).astype(np.int32) * int(rng.integers(8, 40))
    ramp = _phase(rng, height, width, rng.uniform(8, 40)) + bend
    field: Field = _waves()[int(rng.integers(2))][ramp & (_TURN - 1)]
    return field


KINDS: tuple[Callable[[np.random.Generator, int, int], Field], ...] = (
    noise,
    blotches,
    stripes,
    checker,
    gradient,
    mottle,
)


def field(rng: np.random.Generator, height: int, width: int) -> Field:
    """A pattern of a random kind."""
    return KINDS[int(rng.integers(len(KINDS)))](rng, height, width)


def tint(pattern: Field, first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.uint8]:
    """(h, w, 3) RGB: the pattern from the colour ``first`` (3,) at 0 to ``second`` (3,) at 255."""
    steps = np.arange(256, dtype=np.int32)[:, None]
    table = (first * (255 - steps) + second * steps + 127) // 255
    coloured: NDArray[np.uint8] = np.clip(table, 0, 255).astype(np.uint8)[pattern]
    return coloured

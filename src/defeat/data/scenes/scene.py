"""One scene: background, clutter, objects, and the light blur and noise of a camera over everything."""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from defeat.data.scenes.canvas import Canvas
from defeat.data.scenes.distractors import distractor
from defeat.data.scenes.shapes import BUILDS, CLASSES, Shape, Stamp, rasterise, transform
from defeat.data.scenes.textures import field, gradient, noise, tint

SMALLEST, LARGEST = 1 / 16, 0.66
"""Diameter of an object as a share of the image's side: 8 to 84 px of 128."""
EMPTY, CROWDED = 0.06, 0.08
"""Share of images without any object, and with a crowd."""
TRIES = 6


class SceneObject(NamedTuple):
    """One annotation."""

    label: int
    """1..8, the position in ``CLASSES`` plus one."""
    box: tuple[int, int, int, int]
    """xyxy px around the object's pixels inside the image, whether or not something lies over them."""
    area: int
    """Those pixels' number."""
    crowd: bool


class Scene(NamedTuple):
    """A rendered image and what is in it."""

    image: NDArray[np.uint8]
    """(size, size, 3) RGB."""
    objects: list[SceneObject]
    owner: NDArray[np.int16]
    """(size, size): i + 1 where object i is what one sees, 0 elsewhere."""


def render_scene(seed: int, split: str, index: int, size: int = 128) -> Scene:
    """Image ``index`` of a split: depends on these four alone, not on how many images are made."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(split.encode()), index]))
    canvas = Canvas(_background(rng, size))
    _clutter(rng, canvas, int(rng.integers(0, 7)))
    if rng.random() >= EMPTY:
        if rng.random() < CROWDED:
            _crowd(rng, canvas)
        _objects(rng, canvas)
        _clutter(rng, canvas, int(rng.integers(0, 3)))
    objects = [SceneObject(p.label, p.box, p.area, p.crowd) for p in canvas.placed]
    return Scene(_camera(rng, canvas.pixels), objects, canvas.owner)


def _colour(rng: np.random.Generator) -> NDArray[np.int32]:
    return rng.integers(16, 240, 3, dtype=np.int32)


def _background(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """One pattern in two colours, or a second one showing through where noise is high."""
    first = _colour(rng)
    spread = int(rng.integers(12, 90))
    pixels = tint(field(rng, size, size), first, first + rng.integers(-spread, spread + 1, 3, dtype=np.int32))
    if rng.random() < 0.45:
        other = _colour(rng)
        below = tint(field(rng, size, size), other, other + rng.integers(-50, 51, 3, dtype=np.int32))
        edge = noise(rng, size, size).astype(np.int32)
        share = np.clip((edge - 128) * 6 + 128, 0, 255)[..., None]
        pixels = ((pixels * (255 - share) + below * share) // 255).astype(np.uint8)
    return pixels


def _fill(rng: np.random.Generator, under: NDArray[np.int32], height: int, width: int) -> NDArray[np.uint8]:
    """A texture whose colour stands out from ``under`` (3,), a little or a lot."""
    if rng.random() < 0.28:
        step = int(rng.integers(16, 36)) * int(rng.choice([-1, 1]))
        first = under + step + rng.integers(-10, 11, 3, dtype=np.int32)
        spread = 8
    else:
        first = _colour(rng)
        if np.abs(first - under).sum() < 90:
            first = (first + 128) % 256
        spread = int(rng.integers(5, 90))
    second = first + rng.integers(-spread, spread + 1, 3, dtype=np.int32)
    if rng.random() < 0.25:
        return tint(gradient(rng, height, width), first, second)
    return tint(field(rng, height, width), first, second)


def _stamp(rng: np.random.Generator, shape: Shape, diameter: float) -> Stamp | None:
    turn, squeeze = rng.uniform(0, 1), rng.uniform(0.75, 1.0)
    shift_x, shift_y = rng.uniform(-0.5, 0.5, 2).tolist()
    return rasterise(transform(shape, diameter / 2, turn, squeeze, shift_x, shift_y))


def _place(
    rng: np.random.Generator, canvas: Canvas, stamp: Stamp | None, label: int, crowd: bool = False
) -> None:
    """Paint the stamp where it hides nothing too much, or nowhere."""
    if stamp is None:
        return
    size = canvas.size
    for x, y in rng.integers(0, size, (TRIES, 2)).tolist():
        spot = canvas.fit(stamp, x, y, label)
        if spot is not None:
            under = canvas.mean_colour(spot)
            canvas.paint(spot, _fill(rng, under, *spot.alpha.shape), label, crowd)
            return


def _diameters(rng: np.random.Generator, size: int, count: int) -> list[float]:
    """Log-uniform, roughly the largest first: small things then lie on large ones, and not the reverse."""
    low, high = math.log2(SMALLEST * size), math.log2(LARGEST * size)
    exponents = rng.uniform(low, high, count)
    order = np.argsort(-(exponents + rng.uniform(-1, 1, count)), kind="stable")
    return [round(2.0 ** float(e), 3) for e in exponents[order]]


def _objects(rng: np.random.Generator, canvas: Canvas) -> None:
    count = 1 + int(rng.integers(0, 4)) + int(rng.integers(0, 5))
    for diameter in _diameters(rng, canvas.size, count):
        position = int(rng.integers(len(CLASSES)))
        builds = BUILDS[position]
        shape = builds[int(rng.integers(len(builds)))]
        _place(rng, canvas, _stamp(rng, shape, diameter), position + 1)


def _clutter(rng: np.random.Generator, canvas: Canvas, count: int) -> None:
    for diameter in _diameters(rng, canvas.size, count):
        _place(rng, canvas, _stamp(rng, distractor(rng), min(diameter, canvas.size * 0.4)), 0)


def _crowd(rng: np.random.Generator, canvas: Canvas) -> None:
    """Many tiny objects of one class on a jittered lattice, annotated as one."""
    position = int(rng.integers(len(CLASSES)))
    columns, rows = int(rng.integers(3, 7)), int(rng.integers(3, 6))
    diameter = canvas.size * rng.uniform(0.04, 0.065)
    pitch = diameter * 1.35
    shape: Shape = []
    for i in range(columns * rows):
        row, column = divmod(i, columns)
        jitter_x, jitter_y = rng.uniform(-0.25, 0.25, 2).tolist()
        x, y = (column - columns / 2 + jitter_x) * pitch, (row - rows / 2 + jitter_y) * pitch
        radius = diameter / 2 * rng.uniform(0.8, 1.1)
        shape += transform(BUILDS[position][1], radius, rng.uniform(0, 1), rng.uniform(0.8, 1.0), x, y)
    _place(rng, canvas, rasterise(shape), position + 1, crowd=True)


def _camera(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Uneven light, blur, contrast and sensor noise."""
    height, width, _ = pixels.shape
    light = 256 - gradient(rng, height, width).astype(np.int32) * int(rng.integers(0, 110)) // 255
    lit = (pixels * light[..., None] >> 8).astype(np.uint8)
    if rng.random() < 0.5:
        blurred = Image.fromarray(lit).filter(ImageFilter.GaussianBlur(round(rng.uniform(0.3, 0.9), 2)))
        lit = np.asarray(blurred)
    contrast = int(rng.integers(150, 270))
    grain = int(rng.integers(4, 30))
    # Two bytes added make a triangular distribution: close to a sensor's, and free of floating point.
    bytes_ = np.frombuffer(rng.bytes(2 * pixels.size), dtype=np.uint8).reshape(2, *pixels.shape)
    dither = bytes_[0].astype(np.int32) + bytes_[1] - 255
    noisy = (((lit.astype(np.int32) - 128) * contrast + dither * grain) >> 8) + 128
    clipped: NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return clipped

"""The picture while it is painted, with a record of which object each pixel shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defeat.data.scenes.shapes import COVERED, Stamp, extent

INSIDE = 0.6
"""Share of an object that must lie inside the image when it is placed."""
VISIBLE = 0.4
"""Share of an object that later things must leave visible."""


@dataclass
class Placed:
    """An object on the canvas."""

    label: int
    box: tuple[int, int, int, int]
    area: int
    crowd: bool
    visible: int


@dataclass(frozen=True)
class Spot:
    """A stamp at its place, cut at the image's edges."""

    alpha: NDArray[np.uint8]
    """(h, w) coverage."""
    covered: NDArray[np.bool_]
    """(h, w) pixels that count as the object."""
    x: int
    y: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas."""
        height, width = self.alpha.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


class Canvas:
    """(size, size, 3) uint8 ``pixels`` to paint on; paints in place."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.size = pixels.shape[0]
        self.owner = np.zeros(pixels.shape[:2], dtype=np.int16)
        self.placed: list[Placed] = []

    def fit(self, stamp: Stamp, x: int, y: int, label: int) -> Spot | None:
        """The stamp centred at (x, y), or None where it would leave the image or hide an object too much."""
        left, top = stamp.x + x, stamp.y + y
        height, width = stamp.alpha.shape
        rows = slice(max(0, -top), max(0, self.size - top))
        columns = slice(max(0, -left), max(0, self.size - left))
        alpha = stamp.alpha[rows, columns]
        if not alpha.size:
            return None
        spot = Spot(alpha, alpha >= COVERED, max(0, left), max(0, top))
        whole = alpha.shape == (height, width)
        share_wanted = INSIDE if label else 0.0
        if not whole and spot.covered.sum() < share_wanted * (stamp.alpha >= COVERED).sum():
            return None
        return None if self._hides(spot) else spot

    def _hides(self, spot: Spot) -> bool:
        taken = np.bincount(self.owner[spot.window][spot.covered], minlength=len(self.placed) + 1)[1:]
        return any(t and p.visible - t < VISIBLE * p.area for t, p in zip(taken, self.placed, strict=True))

    def mean_colour(self, spot: Spot) -> NDArray[np.int32]:
        """(3,) mean of what the spot will cover, from every second pixel of larger ones."""
        step = 1 if min(spot.alpha.shape) < 12 else 2
        patch = self.pixels[spot.window][::step, ::step].reshape(-1, 3)
        mean: NDArray[np.int32] = (patch.sum(axis=0, dtype=np.int64) // len(patch)).astype(np.int32)
        return mean

    def paint(self, spot: Spot, fill: NDArray[np.uint8], label: int, crowd: bool) -> None:
        """Blend ``fill`` (h, w, 3) in, and note the object; label 0 stands for clutter."""
        window = spot.window
        alpha = spot.alpha[..., None].astype(np.uint16)
        blend = self.pixels[window] * (255 - alpha) + fill * alpha
        self.pixels[window] = ((blend + 127) // 255).astype(np.uint8)
        owner = self.owner[window]
        for i, count in enumerate(np.bincount(owner[spot.covered], minlength=len(self.placed) + 1)[1:]):
            self.placed[i].visible -= int(count)
        owner[spot.covered] = len(self.placed) + 1 if label else 0
        if label:
            self._note(spot, label, crowd)

    def _note(self, spot: Spot, label: int, crowd: bool) -> None:
        left, top, right, bottom = extent(spot.covered)
        box = (spot.x + left, spot.y + top, spot.x + right, spot.y + bottom)
        area = int(spot.covered.sum())
        self.placed.append(Placed(label, box, area, crowd, area))

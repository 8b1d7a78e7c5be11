"""Where student and teacher differ, in the object regions and outside, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from defeat.visual.boxes import FADED_INK, INK
from defeat.visual.pictures import font

_SIDE, _GAP, _TEXT = 220, 8, 18
"""Pixels: the longer side of a panel, between panels, and of a line of text."""

_MAGMA, _OUTSIDE = colormaps["magma"], (200, 203, 207)
"""Colours of a difference, and of the cells of the other region."""


class LevelMap(NamedTuple):
    """One level of one image."""

    title: str
    difference: Tensor
    """(H, W) mean over the channels of \\|teacher - student\\|."""
    mask: Tensor | None
    """(H, W) in [0, 1], the share of a cell that is object; None without regions."""
    top: float
    """The difference at the upper end of the colours."""


def draw_region_maps(image: Tensor, levels: Sequence[LevelMap]) -> Image.Image:
    """Draw a column for each level: the object mask over the image, then the difference in both regions.

    Colours go from 0 (black) to a level's ``top``. Under each panel stands the mean over its region. Without
    masks there is the difference alone.

    Args:
        image: (3, H, W) uint8 RGB, or that of the network padded to its grid; maps are stretched over it.
        levels: finest first.
    """
    scale = _SIDE / max(image.shape[1:])
    size = (max(1, round(image.shape[2] * scale)), max(1, round(image.shape[1] * scale)))
    photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
    rows = max(len(_panels(photo, level)) for level in levels)
    width, height = size[0] + _GAP, size[1] + _TEXT + _GAP
    picture = Image.new("RGB", (len(levels) * width + _GAP, 2 * _TEXT + rows * height), "white")
    draw = ImageDraw.Draw(picture)
    for column, level in enumerate(levels):
        x = _GAP + column * width
        draw.text((x, 2), level.title, fill=INK, font=font(13))
        draw.text((x, _TEXT), f"colours 0 to {level.top:.3g}", fill=FADED_INK, font=font(11))
        for row, (panel, text) in enumerate(_panels(photo, level)):
            y = 2 * _TEXT + 2 + row * height
            picture.paste(panel, (x, y))
            draw.text((x, y + size[1] + 1), text, fill=FADED_INK, font=font(11))
    return picture


def _panels(photo: Image.Image, level: LevelMap) -> list[tuple[Image.Image, str]]:
    difference = level.difference.numpy()
    if level.mask is None:
        return [(_heat(photo, difference, None, level.top), f"difference, mean {difference.mean():.3g}")]
    mask = level.mask.numpy()
    panels = [(_overlay(photo, mask), f"object mask, {mask.mean():.1%} of the cells")]
    for name, region in (("object", mask), ("background", 1 - mask)):
        mean = (difference * region).sum() / region.sum() if region.any() else 0.0
        text = f"{name}, mean {mean:.3g}" if region.any() else f"{name}: no cells"
        panels.append((_heat(photo, difference, region, level.top), text))
    return panels


def _overlay(photo: Image.Image, mask: NDArray[np.float32]) -> Image.Image:
    """Tint the object cells, and darken the others."""
    share = _stretched(mask, photo.size)[..., None]  # (h, w, 1)
    pixels = np.asarray(photo, dtype=np.float32)
    tinted = 0.55 * pixels + 0.45 * np.array([0, 158, 115], dtype=np.float32)
    return Image.fromarray((share * tinted + (1 - share) * 0.55 * pixels).astype(np.uint8))


def _heat(
    photo: Image.Image, difference: NDArray[np.float32], region: NDArray[np.float32] | None, top: float
) -> Image.Image:
    colours = _MAGMA(np.clip(difference / max(top, 1e-12), 0, 1))[..., :3] * 255  # (H, W, 3)
    if region is not None:
        colours = np.where(region[..., None] > 0, colours, _OUTSIDE)
    return Image.fromarray(colours.astype(np.uint8)).resize(photo.size, Image.Resampling.NEAREST)


def _stretched(mask: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    stretched = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(stretched)

"""Figures of matplotlib as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


def rendered(figure: Figure) -> Image.Image:
    """Draw a figure that has an Agg canvas into an RGB picture."""
    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

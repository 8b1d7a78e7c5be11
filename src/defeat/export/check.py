"""The result of a comparison of an exported file with the student that it was made of."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """A comparison of an exported file with the student."""

    name: str
    """The images and what was compared, such as ``portrait, batch 3``."""
    passed: bool
    boxes: float = 0.0
    """Largest difference of a coordinate, pixels; inf where the detections are not the same set, nan where
    they were not compared."""
    scores: float = 0.0
    """Largest difference of a score, likewise."""
    note: str = ""
    """A further figure, or the reason of a failure."""
    detections: int = 0
    """How many detections are the same on both sides."""

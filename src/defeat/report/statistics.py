"""Means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from defeat.report.overlap import Floats


class Estimate(NamedTuple):
    """A value and its 95 % interval; nan where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of independent runs with the 95 % interval of Student's t; no interval of one run.

    Example:
        >>> [round(figure, 4) for figure in over_seeds([0.1, 0.2, 0.3])]
        [0.2, -0.0484, 0.4484]
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = student_t(len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def of_resamples(value: float, resampled: Floats) -> Estimate:
    """``value`` with the 95 % percentile interval of (R,) resamples, of those that are numbers."""
    numbers = resampled[~np.isnan(resampled)]
    if not len(numbers):
        return Estimate(value)
    low, high = np.percentile(numbers, [2.5, 97.5]).tolist()
    return Estimate(value, low, high)


def student_t(freedom: int, confidence: float = 0.95) -> float:
    """Bound that Student's t with ``freedom`` >= 1 degrees stays within with that probability.

    By halving the interval: the distribution itself is a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4).

    Example:
        >>> round(student_t(2), 4)
        4.3027
    """
    low, high = 0.0, 1e3
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Probability that the absolute value is at most ``t``."""
    angle = math.atan(t / math.sqrt(freedom))
    term = math.cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for k in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if freedom % 2 else total

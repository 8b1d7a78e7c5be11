"""Means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

from defeat.evaluation.average_precision import Floats


class Estimate(NamedTuple):
    """A value and its 95 % interval; nan where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of independent runs with the 95 % interval of Student's t; no interval of one run, nan of none.

    Example:
        >>> [round(figure, 4) for figure in over_seeds([0.1, 0.2, 0.3])]
        [0.2, -0.0484, 0.4484]
    """
    mean = math.fsum(values) / len(values) if values else math.nan
    if len(values) < 2:
        return Estimate(mean)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = float(student_t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def of_resamples(value: float, resampled: Floats) -> Estimate:
    """``value`` with the 95 % percentile interval of (R,) resamples, of those that are numbers."""
    numbers = resampled[~np.isnan(resampled)]
    if not len(numbers):
        return Estimate(value)
    low, high = np.percentile(numbers, [2.5, 97.5]).tolist()
    return Estimate(value, low, high)

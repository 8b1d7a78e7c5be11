"""How the distillation weights change over training: progress in [0, 1] -> factor."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 down to 0."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 down to 0 along half a cosine: slow at both ends."""
    return 0.5 * math.cos(math.pi * progress) + 0.5


def up_down(progress: float) -> float:
    """Rises from 0 to 2 over the first quarter, then falls to 0."""
    return 8 * progress if progress < 0.25 else 2 * (1 - progress) / 0.75


def warmup(progress: float, *, until: float = 0.02, then: Schedule = constant) -> float:
    """Linearly from 0 to ``then`` over the first ``until`` of training.

    Raises:
        ValueError: ``until`` outside (0, 1].
    """
    if not 0 < until <= 1:
        raise ValueError(f"warmup until={until} must be in (0, 1]")
    return min(1.0, progress / until) * then(progress)

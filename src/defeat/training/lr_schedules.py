"""Learning-rate schedules, stepped once per optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_multistep(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_steps: int = 500,
    warmup_factor: float = 0.001,
    milestones: Sequence[float] = (8, 11),
    gamma: float = 0.1,
) -> LambdaLR:
    """Linear warm-up, then a factor of ``gamma`` at each milestone: the usual detection recipe.

    Args:
        total_steps: length of the training; not needed here, every schedule is given it.
        steps_per_epoch: optimiser steps.
        warmup_factor: share of the learning rate at step 0.
        milestones: in epochs, fractions allowed.
    """
    drops = [round(m * steps_per_epoch) for m in milestones]

    def factor(step: int) -> float:
        return _warm(step, warmup_steps, warmup_factor) * gamma ** sum(step >= drop for drop in drops)

    return LambdaLR(optimizer, factor)


def warmup_cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_steps: int = 500,
    warmup_factor: float = 0.001,
    final_factor: float = 0.0,
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to ``final_factor`` at the last step."""

    def factor(step: int) -> float:
        progress = min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))
        cosine = final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        return _warm(step, warmup_steps, warmup_factor) * cosine

    return LambdaLR(optimizer, factor)


def _warm(step: int, warmup_steps: int, warmup_factor: float) -> float:
    if step >= warmup_steps:
        return 1.0
    return warmup_factor + (1 - warmup_factor) * step / warmup_steps

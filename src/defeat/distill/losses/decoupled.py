"""What the losses share: the two halves of a decoupled loss, and the precision in which all are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Decoupled(NamedTuple):
    """The two halves of a decoupled loss, unweighted scalars."""

    object: Tensor
    background: Tensor


def widen(x: Tensor) -> Tensor:
    """Convert to float32 at least: float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()


def divide(sums: Decoupled, divisors: Tensor) -> Decoupled:
    """Divide each half by its own number.

    Args:
        sums: two scalars.
        divisors: (2,) object first.
    """
    # Halves stay apart: one that nobody uses must not come back as a gradient of zeros, or of zero times nan.
    return Decoupled(sums.object / divisors[0], sums.background / divisors[1])

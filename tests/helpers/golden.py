"""Inputs of the frozen numbers: measured once by running the released reference code's functions on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRIDES = [4, 8, 16, 32, 64]
SHAPES = [(256 // s, 320 // s) for s in STRIDES]
BOXES = [
    torch.tensor([[10.3, 20.7, 45.2, 60.9], [30, 40, 200.5, 190.25], [100, 10, 103, 13], [5, 5, 315, 250]]),
    torch.tensor([[64.0, 64, 128, 128], [200, 100, 290, 240]]),
]


def wave(shape: tuple[int, ...], k: float) -> Tensor:
    """sin(0.7311 n + k) over the flattened tensor in C order, in float64."""
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7311 * n + k).reshape(shape)

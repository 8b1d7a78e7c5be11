"""Frozen normalisation that keeps features in half precision."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

_HALVES = (torch.float16, torch.bfloat16)


class HalfFrozenBatchNorm2d(FrozenBatchNorm2d):
    """torchvision's frozen BatchNorm, which gives out what it is given: float32 bit for bit, half as half.

    torchvision's own has float32 statistics, so that under autocast its output is float32. Everything behind
    it is kept for the backward so, and once more in half precision for the next convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W), in its dtype."""
        if x.dtype not in _HALVES:
            return cast(Tensor, super().forward(x))
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        shift, scale = (own.to(x.dtype).reshape(1, -1, 1, 1) for own in (shift, scale))
        return torch.addcmul(shift, x, scale)  # rounds once


def normalise_in_half(detector: nn.Module) -> None:
    """Let the frozen normalisation of a detector follow its features' dtype, in place.

    torchvision's own layers alone: what somebody has put there in their place is left.
    """
    for module in detector.modules():
        if type(module) is FrozenBatchNorm2d:
            module.__class__ = HalfFrozenBatchNorm2d

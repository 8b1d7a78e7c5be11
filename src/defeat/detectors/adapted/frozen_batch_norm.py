"""FrozenBatchNorm2d that keeps features in half precision."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

_HALVES = (torch.float16, torch.bfloat16)


class HalfFrozenBatchNorm2d(FrozenBatchNorm2d):
    """torchvision's FrozenBatchNorm2d with an output of its input's dtype.

    torchvision's own has float32 statistics, so that under autocast its output is float32: the backward keeps
    that, and the next convolution a copy in half precision. Here half precision stays half, and float32 is
    computed as torchvision does, bit for bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) features and return them in their own dtype."""
        if x.dtype not in _HALVES:
            return cast(Tensor, super().forward(x))
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        shift, scale = (value.to(x.dtype).reshape(1, -1, 1, 1) for value in (shift, scale))  # (1, C, 1, 1)
        return torch.addcmul(shift, x, scale)  # a fused multiply-add rounds once

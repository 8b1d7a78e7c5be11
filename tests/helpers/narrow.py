"""A backbone that takes an eighth of the time of the smallest that users have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from defeat.detectors import backbones


class NarrowResNet(ResNet):
    """resnet10 with an eighth of the channels in its stages."""

    def __init__(self, norm_layer: Callable[..., nn.Module]) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], norm_layer=norm_layer)

    def _make_layer(self, block: Any, planes: int, *args: Any, **more: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **more)


NARROW = "narrow"

backbones.RESNETS[NARROW] = NarrowResNet


class KnowNarrow(Callback):
    """Makes the narrow backbone known to an executable: callbacks are imported before detectors are built."""


IN_A_PROCESS = "+callbacks.narrow._target_=tests.helpers.narrow.KnowNarrow"
"""To be added to the words of an executable."""

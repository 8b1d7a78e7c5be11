"""Backbones with a feature pyramid, by name, under torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

from torch import nn
from torchvision.models import mobilenetv2, mobilenetv3, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from defeat.detectors.adapted import HalfFrozenBatchNorm2d
from defeat.errors import ConfigError

Norm = Literal["frozen", "batch", "sync"]

NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": HalfFrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
}


def _resnet10(norm_layer: Callable[..., nn.Module]) -> resnet.ResNet:
    """One BasicBlock a stage: the smallest member of the family, trained from scratch in minutes."""
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], norm_layer=norm_layer)


def _resnext101_32x4d(norm_layer: Callable[..., nn.Module]) -> resnet.ResNet:
    """The ResNeXt-101 of most published detectors, which torchvision does not have by name."""
    return resnet.ResNet(
        resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4, norm_layer=norm_layer
    )


RESNETS: dict[str, Callable[..., resnet.ResNet]] = {
    "resnet10": _resnet10,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "resnext101_32x4d": _resnext101_32x4d,
    "resnext101_32x8d": resnet.resnext101_32x8d,
    "resnext101_64x4d": resnet.resnext101_64x4d,
}
MOBILENETS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2": mobilenetv2.mobilenet_v2,
    "mobilenet_v3_large": mobilenetv3.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenetv3.mobilenet_v3_small,
}
NAMES = (*RESNETS, *MOBILENETS)


def fpn_backbone(
    name: str,
    fpn_channels: int,
    returned_layers: Sequence[int],
    trainable_layers: int,
    norm: Norm,
    stride_in_1x1: bool,
    topmost: Callable[[int], ExtraFPNBlock],
    pyramid_norm: bool = False,
) -> BackboneWithFPN:
    """Build a backbone and the pyramid over it.

    Args:
        name: one of :data:`NAMES`.
        fpn_channels: channels of every pyramid level.
        returned_layers: stages the pyramid is built on, 1..4 for strides 4, 8, 16, 32.
        trainable_layers: how many of the 5 parts (stem, stages 1-4) learn, counted from the deepest.
        norm: ``frozen`` (statistics and scale fixed), ``batch`` or ``sync`` (over all processes).
        stride_in_1x1: put a bottleneck's stride into its first 1x1 convolution, as in the weights of the
            original ResNet release and of Detectron; ResNet-50, ResNeXt and larger only.
        topmost: given the channels of the deepest of these stages, makes the levels above it.
        pyramid_norm: normalise each map of the pyramid, whose convolutions then have no bias.

    Raises:
        ConfigError: an unknown name or norm, layers out of range, or a stride option that cannot apply.
    """
    _check(name, returned_layers, trainable_layers, norm)
    if name in RESNETS:
        body, stages, channels = _resnet(name, norm, stride_in_1x1)
    else:
        if stride_in_1x1:
            raise ConfigError(f"stride_in_1x1=true needs a ResNet with bottlenecks, not {name}")
        body, stages, channels = _mobilenet(name, norm)
    _freeze(body, stages, trainable_layers)
    return BackboneWithFPN(
        body,
        return_layers={stages[layer][-1]: str(i) for i, layer in enumerate(returned_layers)},
        in_channels_list=[channels[layer] for layer in returned_layers],
        out_channels=fpn_channels,
        extra_blocks=topmost(channels[max(returned_layers)]),
        norm_layer=NORMS[norm] if pyramid_norm else None,
    )


def _check(name: str, returned_layers: Sequence[int], trainable_layers: int, norm: str) -> None:
    if name not in RESNETS and name not in MOBILENETS:
        raise ConfigError(f"unknown backbone {name!r}: choose one of {', '.join(NAMES)}")
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r}: choose one of {', '.join(NORMS)}")
    if list(returned_layers) != sorted(set(returned_layers)) or not set(returned_layers) <= {1, 2, 3, 4}:
        raise ConfigError(f"returned_layers must rise within 1..4, got {list(returned_layers)}")
    if not returned_layers:
        raise ConfigError("returned_layers is empty: a pyramid needs at least one stage")
    if not 0 <= trainable_layers <= 5:
        raise ConfigError(f"trainable_layers must be 0..5, got {trainable_layers}")


def _resnet(name: str, norm: Norm, stride_in_1x1: bool) -> tuple[nn.Module, list[list[str]], list[int]]:
    net = RESNETS[name](norm_layer=NORMS[norm])
    if stride_in_1x1:
        _move_stride(net, name)
    stages = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    deepest = net.inplanes
    return net, stages, [64, deepest // 8, deepest // 4, deepest // 2, deepest]


def _move_stride(net: resnet.ResNet, name: str) -> None:
    for stage in (net.layer2, net.layer3, net.layer4):
        block = stage[0]
        if not isinstance(block, resnet.Bottleneck):
            raise ConfigError(f"stride_in_1x1=true needs a ResNet with bottlenecks, not {name}")
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def _mobilenet(name: str, norm: Norm) -> tuple[nn.Module, list[list[str]], list[int]]:
    """Group the blocks by stride; a stage's feature is that of its last block, its deepest.

    torchvision's own extractor returns each stage's first block instead, which sees less.
    The closing 1x1 convolution belongs to the classifier and is left out.
    """
    norm_layer = NORMS[norm]
    if name.startswith("mobilenet_v3"):  # as published for V3, and what its ImageNet weights expect
        norm_layer = partial(norm_layer, eps=0.001, **({} if norm == "frozen" else {"momentum": 0.01}))
    blocks: list[Any] = list(cast(Any, MOBILENETS[name](norm_layer=norm_layer)).features)[:-1]
    stages: list[list[str]] = [[]]
    for i, block in enumerate(blocks):
        if getattr(block, "_is_cn", False):
            stages.append([])
        stages[-1].append(str(i))
    return nn.Sequential(*blocks), stages, [blocks[int(stage[-1])].out_channels for stage in stages]


def _freeze(body: nn.Module, stages: list[list[str]], trainable_layers: int) -> None:
    for stage in stages[: len(stages) - trainable_layers]:
        for child in stage:
            body.get_submodule(child).requires_grad_(False)

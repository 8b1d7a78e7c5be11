"""Normalisation that is folded away leaves the outputs as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from defeat.detectors import fcos, retinanet
from defeat.detectors.builders import faster_rcnn
from defeat.detectors.fold import Summand, fold_normalisation

BACKBONES = {
    "resnet10": lambda: faster_rcnn(3, backbone="resnet10", fpn_channels=8),
    "resnet50": lambda: faster_rcnn(3, backbone="resnet50", fpn_channels=8, norm="batch"),
    "mobilenet_v2": lambda: retinanet(3, backbone="mobilenet_v2", fpn_channels=8, norm="batch"),
    "mobilenet_v3_small": lambda: fcos(3, backbone="mobilenet_v3_small", fpn_channels=64),
    "torchvision_v2": lambda: detection.fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=3
    ),
}


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)]


def unsettled(module: nn.Module) -> nn.Module:
    """Statistics and scales as a training leaves them, in float64 and eval mode."""
    for norm in norms(module):
        for name, low, high in (("running_mean", -1, 1), ("running_var", 0.2, 2), ("weight", 0.5, 2)):
            getattr(norm, name).data.uniform_(low, high)
        norm.bias.data.uniform_(-1, 1)
    return module.double().eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_normalisation_of_our_backbones_goes_and_the_maps_stay(name: str) -> None:
    backbone = unsettled(BACKBONES[name]().backbone)
    before, found = copy.deepcopy(backbone), len(norms(backbone))
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    assert fold_normalisation(backbone) == found > 5
    assert not norms(backbone)
    with torch.no_grad():
        maps, expected = backbone(image), before(image)
    for level, x in expected.items():
        torch.testing.assert_close(maps[level], x, rtol=1e-7, atol=1e-7)
        assert x.std() > 1e-6


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_what_residual_blocks_add_up_stays_in_float32(name: str) -> None:
    backbone = unsettled(BACKBONES[name]().backbone).float()
    fold_normalisation(backbone)
    summands = [m for m in backbone.modules() if isinstance(m, Summand)]
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        blocks: list[Tensor] = []
        for module in backbone.modules():
            if isinstance(module, Bottleneck) or getattr(module, "use_res_connect", False):
                module.register_forward_hook(lambda m, a, out: blocks.append(out))
        backbone(image)
    assert len(summands) > len(blocks) > 5  # where a stream begins, that is a summand too
    assert {x.dtype for x in blocks} == {torch.float32}


class Awkward(nn.Module):
    """A convolution read twice, one called twice, none, a norm that trains, a subclass; and one fine pair."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm_a = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.called_twice, self.norm_b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm_c = nn.BatchNorm2d(3)
        self.conv_d, self.norm_d = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv_e = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        self.norm_e = nn.BatchNorm2d(3)
        self.conv_f, self.norm_f = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        both = self.read_twice(x)
        x = self.norm_a(both) + both
        x = self.norm_b(self.called_twice(self.called_twice(x)))
        x = self.norm_c(x.relu())
        x = self.norm_e(self.conv_e(self.norm_d(self.conv_d(x))))
        return self.norm_f(self.conv_f(x))


def test_only_a_convolution_of_one_reader_takes_a_fixed_normalisation() -> None:
    module = Awkward().double()
    for norm in norms(module):
        norm.running_mean.uniform_(-1, 1)
    module.eval()
    module.norm_d.train()
    module.norm_d.momentum = 0.0
    before = copy.deepcopy(module)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    assert fold_normalisation(module) == 1
    assert isinstance(module.norm_f, nn.Identity)
    torch.testing.assert_close(module(x), before(x))


def test_what_cannot_be_traced_is_left_alone() -> None:
    class Branches(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    module = Branches(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    assert fold_normalisation(module) == 0
    assert len(norms(module)) == 1

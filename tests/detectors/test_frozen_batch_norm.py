"""Frozen normalisation under autocast: half in, half out, and half the memory for the backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from defeat.detectors import create_detector, faster_rcnn
from defeat.detectors.adapted.frozen_batch_norm import HalfFrozenBatchNorm2d, normalise_in_half


def norm(channels: int = 6) -> FrozenBatchNorm2d:
    torch.manual_seed(0)
    layer = FrozenBatchNorm2d(channels)
    for name, low, high in (
        ("weight", 0.5, 2),
        ("bias", -1, 1),
        ("running_mean", -1, 1),
        ("running_var", 0.1, 4),
    ):
        layer.get_buffer(name).uniform_(low, high)
    return layer


def pair() -> tuple[FrozenBatchNorm2d, FrozenBatchNorm2d]:
    theirs = norm()
    ours = copy.deepcopy(theirs)
    normalise_in_half(ours)
    assert type(ours) is HalfFrozenBatchNorm2d
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_torchvisions_bit_for_bit(dtype: torch.dtype) -> None:
    ours, theirs = pair()
    x = torch.randn(2, 6, 5, 7, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_half_stays_half_with_its_rounding_and_the_gradient_of_the_scale(
    dtype: torch.dtype, error: float
) -> None:
    ours, theirs = pair()
    x = torch.randn(2, 6, 5, 7).to(dtype).requires_grad_()
    out = ours(x)
    exact = theirs(x.detach().float())
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=error, atol=2 * error)
    out.sum().backward()
    scale = theirs.weight * (theirs.running_var + theirs.eps).rsqrt()
    assert x.grad is not None
    wanted = scale.reshape(1, -1, 1, 1).expand_as(x)
    torch.testing.assert_close(x.grad.float(), wanted.float(), rtol=error, atol=0)


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward under autocast keeps for its backward."""
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = model(x)
    total = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    out.sum().backward()
    return total


def test_a_backbone_keeps_half_as_much_for_its_backward() -> None:
    theirs = resnet18(norm_layer=FrozenBatchNorm2d)
    ours = copy.deepcopy(theirs)
    normalise_in_half(ours)
    weights = sum(p.numel() * p.element_size() for p in theirs.parameters())
    x = torch.randn(2, 3, 256, 256)
    assert kept(ours, x) - weights / 2 < 0.6 * (kept(theirs, x) - weights / 2)


def test_detectors_have_it_and_layers_of_others_stay() -> None:
    class Own(FrozenBatchNorm2d):
        pass

    settings: dict[str, Any] = {"backbone": "resnet10", "fpn_channels": 16, "norm": "frozen"}
    detector = create_detector(lambda num_classes: faster_rcnn(num_classes, **settings), ["a"]).model
    kinds = {type(layer) for layer in detector.modules() if isinstance(layer, FrozenBatchNorm2d)}
    assert kinds == {HalfFrozenBatchNorm2d}
    own = Own(3)
    normalise_in_half(own)
    assert type(own) is Own

from __future__ import annotations

import math

import pytest
import torch

from defeat.distill import Decoupled, Grids, decoupled_feature_loss, decoupled_kl, object_mask
from tests.helpers.golden import BOXES, SHAPES, STRIDES, wave


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feature_loss_golden_values(dtype: torch.dtype) -> None:
    masks = object_mask(Grids(BOXES, SHAPES, STRIDES))
    found = []
    for mask, stride, (h, w) in zip(masks, STRIDES, SHAPES, strict=True):
        s, t = wave((2, 8, h, w), stride).to(dtype), (1.3 * wave((2, 8, h, w), stride + 0.5)).to(dtype)
        found.append(torch.stack(decoupled_feature_loss(s, t, mask)))
    mean = torch.stack(found).mean(0)
    torch.testing.assert_close(
        mean, torch.tensor([0.0612422955, 0.1019878122], dtype=dtype), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, (1.2133541, 1.2112790)), (2.0, (2.0069499, 2.0152266))]
)
def test_kl_golden_values(temperature: float, expected: tuple[float, float]) -> None:
    s, t = (3 * wave((64, 21), 1)).float(), (4 * wave((64, 21), 2)).float()
    is_object = torch.arange(64) % 5 > 0
    found = decoupled_kl(s, t, is_object, object_temperature=temperature, background_temperature=temperature)
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.2129326), (2.0, 2.0086308)])
def test_kl_over_all_proposals_golden_values(temperature: float, expected: float) -> None:
    s, t = (3 * wave((64, 21), 1)).float(), (4 * wave((64, 21), 2)).float()
    found = decoupled_kl(s, t, torch.ones(64, dtype=torch.bool), object_temperature=temperature)
    assert found.object.item() == pytest.approx(expected, abs=2e-6)
    assert found.background.item() == 0


def test_second_derivatives_of_the_feature_loss_are_those_of_finite_differences() -> None:
    s = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    t, mask = torch.randn(1, 2, 3, 3, dtype=torch.float64), torch.rand(1, 3, 3).double()
    s.data[..., 0, 0] = t[..., 0, 0]  # no error, no kink
    assert torch.autograd.gradgradcheck(lambda x: tuple(decoupled_feature_loss(x, t, mask)), s)


@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("student_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("teacher_format", [torch.contiguous_format, torch.channels_last])
def test_the_feature_loss_does_not_depend_on_how_maps_lie_in_memory(
    teacher_dtype: torch.dtype, student_format: torch.memory_format, teacher_format: torch.memory_format
) -> None:
    s, t, mask = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6).to(teacher_dtype), torch.rand(2, 5, 6)
    own = s.clone(memory_format=student_format).requires_grad_()
    loss = decoupled_feature_loss(own, t.clone(memory_format=teacher_format), mask)
    (gradient,) = torch.autograd.grad(loss.object + 2 * loss.background, own)
    assert gradient.is_contiguous(memory_format=student_format)
    plain = s.requires_grad_()
    error = (plain - t.float()).square().sum(1)
    halves = ((error * m).sum() / (2 * 8 * m.sum()) for m in (mask, 1 - mask))
    expected = Decoupled(*halves)
    torch.testing.assert_close(loss, expected)
    (whole,) = torch.autograd.grad(expected.object + 2 * expected.background, plain)
    torch.testing.assert_close(gradient, whole)


def test_half_precision_is_computed_in_float32() -> None:
    s, t = torch.full((1, 4, 8, 8), 300.0).half(), torch.zeros(1, 4, 8, 8).half()
    loss = decoupled_feature_loss(s, t, torch.ones(1, 8, 8))
    assert loss.object.dtype == torch.float32
    assert loss.object.item() == pytest.approx(300.0**2 / 2)  # its square is beyond float16


def test_a_nonfinite_background_logit_spares_the_objects() -> None:
    s, t = torch.randn(2, 3), torch.randn(2, 3)
    s[1, 0] = math.nan
    assert decoupled_kl(s, t, torch.tensor([True, False])).object.isfinite()


def test_shapes_must_agree() -> None:
    x = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="disagree"):
        decoupled_feature_loss(x, x, torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="disagree"):
        decoupled_feature_loss(x, torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="disagree"):
        decoupled_kl(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="disagree"):
        decoupled_kl(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))

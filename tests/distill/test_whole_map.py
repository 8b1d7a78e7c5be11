from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from defeat.config import build
from defeat.detectors import FrozenTeacher, capture, faster_rcnn, inspect_detector, retinanet
from defeat.distill import Distiller, WholeMapTerm, channel_loss, conv3x3, matching, pearson_loss
from defeat.distill.terms import MapLoss
from defeat.errors import ConfigError
from tests.helpers.distillation import distiller_config
from tests.helpers.narrow import NARROW

LOSSES = [pearson_loss, partial(channel_loss, temperature=2.0)]
SMALL: dict[str, Any] = {
    "backbone": NARROW,
    "min_size": 64,
    "max_size": 64,
    "norm": "batch",
    "trainable_layers": 5,
}
HEAD: dict[str, Any] = {"box_head_channels": 16, "box_batch_size_per_image": 32}
FAMILIES = {"frcnn": partial(faster_rcnn, **HEAD), "retinanet": retinanet}
IMAGES = [torch.rand(3, 48, 64), torch.rand(3, 64, 40)]
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 30, 40], [20, 20, 28, 28]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.tensor([[2.0, 5, 38, 60]]), "labels": torch.tensor([2])},
]


def naive_pearson(s: Tensor, t: Tensor) -> float:
    """Mean over channels of 1 - r, as loops."""
    total = 0.0
    for channel in range(s.shape[1]):
        a, b = s[:, channel].flatten().tolist(), t[:, channel].flatten().tolist()
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        spread_a = math.sqrt(sum((x - mean_a) ** 2 for x in a))
        spread_b = math.sqrt(sum((y - mean_b) ** 2 for y in b))
        total += 1 - both / (spread_a * spread_b)
    return total / s.shape[1]


def naive_channel(s: Tensor, t: Tensor, temperature: float) -> float:
    """Mean over images and channels of T^2 KL, as loops."""
    total = 0.0
    for image in range(s.shape[0]):
        for channel in range(s.shape[1]):
            a = [math.exp(v / temperature) for v in s[image, channel].flatten().tolist()]
            b = [math.exp(v / temperature) for v in t[image, channel].flatten().tolist()]
            p, q = [v / sum(a) for v in a], [v / sum(b) for v in b]
            total += temperature**2 * sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
    return total / (s.shape[0] * s.shape[1])


def maps(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two maps of unlike channels, float64."""
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    scale = 0.1 + 3 * torch.rand(1, shape[1], 1, 1, generator=g, dtype=torch.float64)
    return s, scale * (t + 0.5 * s) - 2


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 4), st.integers(1, 4))


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_pearson_loss_equals_the_loops(shape: tuple[int, int, int, int], seed: int) -> None:
    s, t = maps(*shape, seed=seed)
    assert pearson_loss(s, t).item() == pytest.approx(naive_pearson(s, t), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 2**31), st.floats(0.5, 4))
def test_channel_loss_equals_the_loops(
    shape: tuple[int, int, int, int], seed: int, temperature: float
) -> None:
    s, t = maps(*shape, seed=seed)
    found = channel_loss(s, t, temperature=temperature).item()
    assert found == pytest.approx(naive_channel(s, t, temperature), abs=1e-9)


def test_pearson_loss_ignores_scale_and_shift_of_every_channel_on_either_side() -> None:
    s, t = maps(2, 3, 4, 5)
    scale, shift = (
        torch.tensor([0.01, 2.0, 300.0])[:, None, None],
        torch.tensor([-50.0, 0.0, 4.0])[:, None, None],
    )
    before = pearson_loss(s, t)
    torch.testing.assert_close(pearson_loss(scale * s + shift, t), before, atol=1e-9, rtol=0)
    torch.testing.assert_close(pearson_loss(s, scale * t + shift), before, atol=1e-9, rtol=0)
    torch.testing.assert_close(pearson_loss(-s, t), 2 - before, atol=1e-9, rtol=0)
    assert not torch.isclose(pearson_loss(s.roll(1, 1), t), before, rtol=1e-3)


def test_channel_loss_ignores_a_constant_added_to_a_channel_of_either_side() -> None:
    s, t = maps(2, 3, 4, 5)
    shift = torch.randn(2, 3, 1, 1, dtype=torch.float64)  # of each image
    before = channel_loss(s, t, temperature=1.0)
    torch.testing.assert_close(channel_loss(s + shift, t, temperature=1.0), before, atol=1e-12, rtol=0)
    torch.testing.assert_close(channel_loss(s, t + shift, temperature=1.0), before, atol=1e-12, rtol=0)
    assert not torch.isclose(channel_loss(2 * s, t, temperature=1.0), before, rtol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_maps_cost_nothing_and_others_do(loss: MapLoss) -> None:
    s, t = maps(2, 3, 4, 5)
    assert loss(t, t).item() == pytest.approx(0, abs=1e-12)
    assert loss(s, t).item() > 0.01


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss: MapLoss) -> None:
    s, t = maps(2, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [0.0, 0.1, 100.1])
def test_constant_channels_give_numbers_and_no_noise(loss: MapLoss, value: float) -> None:
    s, t = (x.float() for x in maps(2, 2, 16, 16))
    # as good as constant: half of the cells are the next number
    for x, around in ((s, value), (t, -value)):
        level = torch.full((2, 16, 16), around)
        x[:, 0] = torch.where(torch.rand(level.shape) < 0.5, level, level.nextafter(torch.tensor(9e9)))
    s.requires_grad_()
    both = loss(s[:, :1], t[:, :1])
    assert both.item() == pytest.approx(0, abs=0.01)
    for other in (t, t.roll(1, 1)):  # constant on both sides, and on one
        value_and_gradient = loss(s, other), torch.autograd.grad(loss(s, other), s)[0]
        assert all(x.isfinite().all() for x in value_and_gradient)
    single = s.detach()[:1, :, :1, :1].requires_grad_()  # a map of one cell is constant, too
    loss(single, t[:1, :, :1, :1]).backward()
    assert single.grad is not None
    assert single.grad.abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss: MapLoss) -> None:
    s, t = (300 + 100 * x for x in maps(2, 2, 8, 8))  # squares beyond float16
    found = loss(s.half(), t.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(s.half().double(), t.half().double()).float(), rtol=1e-4, atol=0)
    assert loss(s, t).dtype == torch.float64


def test_wrong_arguments_are_refused() -> None:
    s, t = torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)
    for loss in LOSSES:
        with pytest.raises(ValueError, match="disagree"):
            loss(s, t)
    with pytest.raises(ValueError, match="temperature"):
        channel_loss(s, s, temperature=0.0)
    student, teacher = pair("frcnn")
    with pytest.raises(ConfigError, match="leave the term out"):
        WholeMapTerm(inspect_detector(student), inspect_detector(teacher), weight=0.0, loss=pearson_loss)


def test_the_adapter_is_nothing_where_channels_agree() -> None:
    assert isinstance(matching(8, 8), nn.Identity)
    conv = matching(8, 12)
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (8, 12, (1, 1))


def pair(
    family: str, student_channels: int = 8, teacher_channels: int = 12, teacher_family: str | None = None
) -> tuple[nn.Module, nn.Module]:
    student = FAMILIES[family](3, **SMALL, fpn_channels=student_channels).train()
    teacher = FAMILIES[teacher_family or family](3, **SMALL, fpn_channels=teacher_channels)
    return student, teacher.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("loss", "place", "strides"),
    [(LOSSES[0], "neck", None), (LOSSES[1], "neck", [8, 32]), (LOSSES[0], "stages", [16, 32])],
)
def test_the_term_is_the_weighted_mean_of_its_levels(
    loss: MapLoss, place: Any, strides: list[int] | None
) -> None:
    student, teacher = pair("frcnn")
    term = partial(WholeMapTerm, maps=place, strides=strides, weight=3.0, loss=loss, adapter=conv3x3)
    distiller = Distiller(student, teacher, terms={"mine": term})
    with capture(student) as captured:
        student(IMAGES, TARGETS)
    parts = distiller.level_losses(student, FrozenTeacher(teacher), captured)
    with torch.no_grad(), capture(teacher) as teacher_captures:
        teacher.backbone(captured.images)
    student_maps, teacher_maps = getattr(captured, place), getattr(teacher_captures, place)
    by_stride = {captured.images.shape[-1] // x.shape[-1]: name for name, x in student_maps.items()}
    chosen = strides or sorted(by_stride)
    layers = distiller.terms["mine"].adapters.layers
    names = [by_stride[stride] for stride in chosen]
    each = [
        loss(layers[str(s)](student_maps[n]), teacher_maps[n]) for s, n in zip(chosen, names, strict=True)
    ]
    assert list(parts) == ["mine"]
    torch.testing.assert_close(parts["mine"], 3 * torch.stack(each) / len(chosen))
    total = distiller(student, FrozenTeacher(teacher), captured, 0.0)["mine"]
    torch.testing.assert_close(total, 3 * torch.stack(each).mean())
    assert distiller.weights == {"mine": 3.0}
    assert distiller.gradient_sites["mine"].strides == tuple(chosen)
    distiller.set_weights({"mine": 6.0})
    torch.testing.assert_close(distiller(student, FrozenTeacher(teacher), captured, 0.0)["mine"], 2 * total)


@pytest.mark.parametrize("name", ["pkd", "cwd"])
@pytest.mark.parametrize(
    ("family", "teacher_family", "channels"),
    [
        ("frcnn", "frcnn", (8, 8)),
        ("retinanet", "retinanet", (8, 8)),
        ("retinanet", "frcnn", (8, 12)),
    ],
)
def test_the_configured_distillers_teach(
    name: str, family: str, teacher_family: str, channels: tuple[int, int]
) -> None:
    student, teacher = pair(family, *channels, teacher_family=teacher_family)
    # where two images have more than a cell each: among two numbers the correlation is 1 or -1
    strides = f"distiller.terms.{name}.strides=[8,16,32]"
    distiller = build(distiller_config(name, strides))(student, teacher)
    assert bool(list(distiller.parameters())) == (channels[0] != channels[1])
    parameters = [p for p in [*student.parameters(), *distiller.parameters()] if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    losses = []
    for _ in range(2):
        with capture(student) as captured:
            detection = student(IMAGES, TARGETS)
        (loss,) = distiller(student, FrozenTeacher(teacher), captured, 0.0).values()
        losses.append(loss.item())
        (alone,) = torch.autograd.grad(loss, [student.backbone.body.conv1.weight], retain_graph=True)
        assert alone.abs().sum() > 0
        optimizer.zero_grad()
        (loss + 0 * sum(detection.values())).backward()
        # DistributedDataParallel refuses a parameter that the loss does not reach
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
    assert losses[1] < losses[0]


def test_the_configured_weights_and_what_is_inherited() -> None:
    neck = distiller_config("neck")
    for name, weight in (("pkd", 24.0), ("cwd", 20.0)):
        config = distiller_config(name)
        assert {key for key, term in config.terms.items() if term is not None} == {name}
        assert config.terms[name].weight == weight
        assert {k: v for k, v in config.items() if k != "terms"} == {
            k: v for k, v in neck.items() if k != "terms"
        }

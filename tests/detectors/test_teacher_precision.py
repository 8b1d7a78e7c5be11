"""A teacher that is made cheaper computes the same, to the precision that is promised."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors import FrozenTeacher, fcos, retinanet, teacher_precision
from defeat.detectors.builders import faster_rcnn
from defeat.detectors.capture import Captured
from defeat.detectors.frozen_teacher import Arithmetic
from defeat.detectors.teacher_precision import (
    TOLERANCE,
    Float32,
    optimize_for_inference,
    outputs,
    relative_errors,
)

BUILDERS = {"frcnn": faster_rcnn, "retinanet": retinanet, "fcos": fcos}


def teacher(kind: str = "frcnn", backbone: str = "resnet10", **more: Any) -> FrozenTeacher:
    model = BUILDERS[kind](3, backbone=backbone, fpn_channels=64, min_size=64, max_size=64, **more)
    for norm in model.modules():
        if hasattr(norm, "running_var"):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
    return FrozenTeacher(model)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96)


@pytest.fixture
def half_is_fast() -> Any:
    """As on a processor with avx512_bf16, whatever this one has."""
    with patch.object(teacher_precision, "_fast_halves", lambda device: (torch.bfloat16,)):
        yield


@pytest.mark.parametrize("kind", BUILDERS)
def test_float32_computes_the_same_and_nothing_of_it_learns(kind: str, images: Tensor) -> None:
    model = teacher(kind)
    exact = outputs(copy.deepcopy(model), images)
    done = optimize_for_inference(model, images, "float32")
    assert done is not None
    assert (done.half, done.float32) == (None, ())
    assert done.folded > 5
    assert "float32" in str(done)
    found = outputs(model, images)
    assert found.keys() == exact.keys() == done.errors.keys()
    assert any(name.startswith("stage") for name in exact)
    assert any(name.startswith("neck") for name in exact)
    assert "class scores" in exact
    assert ("objectness" in exact) == (kind == "frcnn")
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    assert max(done.errors.values()) < 1e-5
    assert not any(p.requires_grad for p in model.parameters())
    conv = next(
        m for m in model.detector.backbone.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    )
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_as_built_changes_nothing(images: Tensor) -> None:
    model = teacher()
    before = copy.deepcopy(model)
    assert optimize_for_inference(model, images, "as_built") is None
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.features(images).neck["0"].dtype == torch.bfloat16  # as what is around it


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_half_that_is_asked_for_is_taken_and_its_error_told(half: str, images: Tensor) -> None:
    model = teacher()
    exact = outputs(copy.deepcopy(model), images)
    done = optimize_for_inference(model, images, cast(teacher_precision.Precision, half))
    assert done is not None
    dtype = getattr(torch, half)
    assert (done.half, done.float32) == (dtype, ())
    seen = model.features(images)
    assert {x.dtype for x in seen.neck.values()} == {dtype}
    assert {x.dtype for x in seen.stages.values()} == {torch.float32}  # sums of residual blocks
    assert done.errors == relative_errors(outputs(model, images), exact)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {w.dtype for w in weights} == {dtype}
    assert 1e-5 < max(done.errors.values()) < 0.1
    assert half in str(done)


@pytest.mark.usefixtures("half_is_fast")
class TestAuto:
    def test_keeps_the_fewest_first_parts_in_float32_that_suffice(self, images: Tensor) -> None:
        """Against trying every number of parts, one after the other."""
        model = teacher(backbone="mobilenet_v2")
        parts = list(dict(teacher_precision._parts(model.detector.backbone.body)))
        worst = []
        optimize_for_inference(trial := copy.deepcopy(model), images, "float32")
        plan = teacher_precision._Plan(trial, images, outputs(model, images))
        for kept in range(len(parts) + 1):
            worst.append(max(plan.set(torch.bfloat16, kept).values()))
        assert sum(isinstance(m, Float32) for m in trial.modules()) == len(parts)  # all, the last time
        tolerance = (worst[0] + worst[-1]) / 2
        wanted = next(kept for kept, error in enumerate(worst) if error < tolerance)
        assert 0 < wanted < len(parts)
        with patch.object(teacher_precision, "TOLERANCE", tolerance):
            done = optimize_for_inference(model, images)
        assert done is not None
        assert max(done.errors.values()) < tolerance
        # errors need not fall with every part: fewer than found never suffice just before it
        kept = len(done.float32)
        assert done.float32 == tuple(parts[:kept])
        assert worst[kept - 1] >= tolerance > worst[kept]
        assert parts[kept - 1] in str(done)
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        held = [m for part in model.modules() if isinstance(part, Float32) for m in part.modules()]
        assert all((m.weight.dtype == torch.float32) == any(m is one for one in held) for m in convs)
        assert held

    def test_is_half_throughout_where_that_suffices(self, images: Tensor) -> None:
        with patch.object(teacher_precision, "TOLERANCE", 0.5):
            done = optimize_for_inference(teacher(), images)
        assert done is not None
        assert (done.half, done.float32) == (torch.bfloat16, ())

    @pytest.mark.parametrize("spoilt", [1e-9, float("nan")])
    def test_falls_back_to_float32_where_nothing_suffices(self, spoilt: float, images: Tensor) -> None:
        model = teacher()
        with patch.object(teacher_precision, "TOLERANCE", spoilt):
            done = optimize_for_inference(model, images)
        assert done is not None
        assert (done.half, done.float32) == (None, ())
        assert not any(isinstance(m, Float32) for m in model.modules())
        assert model.features(images).neck["0"].dtype == torch.float32

    def test_an_output_that_is_not_finite_never_passes(self, images: Tensor) -> None:
        model = teacher()
        model.detector.roi_heads.box_predictor.cls_score.weight.fill_(
            3e38
        )  # finite in float32, not after rounding up
        model.detector.roi_heads.box_predictor.cls_score.bias.fill_(0)
        done = optimize_for_inference(model, images)
        assert done is not None
        assert done.half is None

    def test_a_backbone_without_named_parts_is_half_or_not(self, images: Tensor) -> None:
        model = teacher()
        body = model.detector.backbone.body

        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = body

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return cast(dict[str, Tensor], self.inner(x))

        model.detector.backbone.body = Whole()
        with patch.object(teacher_precision, "TOLERANCE", 1e-5):
            done = optimize_for_inference(model, images)
        assert done is not None
        assert done.half is None


def test_no_half_is_tried_where_none_is_fast(images: Tensor) -> None:
    with patch.object(teacher_precision, "_fast_halves", lambda device: ()):
        done = optimize_for_inference(teacher(), images)
    assert done is not None
    assert done.half is None


def test_a_teacher_keeps_its_arithmetic_within_another(images: Tensor) -> None:
    model = teacher()
    optimize_for_inference(model, images, "float32")
    with torch.autocast("cpu", torch.bfloat16):
        assert model.features(images).neck["0"].dtype == torch.float32
    optimize_for_inference(other := teacher(), images, "bfloat16")
    assert other.features(images).neck["0"].dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_a_teacher_never_learns_and_stays_in_eval_mode(images: Tensor) -> None:
    model = nn.ModuleList([teacher(norm="batch")]).train()[0]
    images.requires_grad_()
    before = copy.deepcopy(model.state_dict())
    captured = model.features(images)
    assert not any(x.requires_grad for x in (*captured.stages.values(), *captured.neck.values()))
    model([torch.rand(3, 64, 64)])
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_only_stages_are_computed_where_no_pyramid_is_wanted(images: Tensor) -> None:
    whole, stages = teacher().features(images), teacher().features(images, neck=False)
    assert stages.stages.keys() == whole.stages.keys()
    assert (len(whole.neck), stages.neck) == (5, {})


def test_a_copy_computes_alike(images: Tensor) -> None:
    model = teacher()
    optimize_for_inference(model, images, "bfloat16")
    a, b = outputs(model, images), outputs(copy.deepcopy(model), images)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert copy.deepcopy(model).arithmetic == Arithmetic(torch.bfloat16)


def test_proposals_of_a_half_precision_teacher_are_float32(images: Tensor) -> None:
    model = teacher()
    optimize_for_inference(model, images, "bfloat16")
    target = {"boxes": torch.tensor([[3.0, 5, 40.5, 50.25]]), "labels": torch.tensor([1])}
    seen = Captured(images=images, image_sizes=[(64, 96)] * 2, targets=cast(Any, [target] * 2))
    found = model.sample_proposals(model.features(images).neck, seen)
    assert {x.dtype for x in found.boxes} == {torch.float32}
    assert any(bool((boxes == target["boxes"]).all(1).any()) for boxes in found.boxes)  # truth, unrounded


def test_relative_error_is_that_of_the_norms() -> None:
    exact = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    errors = relative_errors({"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2)}, exact)
    assert errors == {"a": pytest.approx(0.1), "b": 0.0}
    assert TOLERANCE == 0.01


@pytest.mark.parametrize(("major", "hip", "wanted"), [(7, None, 1), (8, None, 2), (7, "6.0", 2)])
def test_emulated_bfloat16_is_not_taken_for_fast(
    major: int, hip: str | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(major=major)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.version, "hip", hip)
    halves = teacher_precision._fast_halves(torch.device("cuda"))
    assert halves == (torch.float16, torch.bfloat16)[:wanted]

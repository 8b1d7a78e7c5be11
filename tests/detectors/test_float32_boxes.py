"""Boxes keep float32 where features are bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defeat.detectors import capture, create_detector, fcos, retinanet
from defeat.detectors.builders import faster_rcnn

HEIGHT, WIDTH = 64, 1333


def tiny(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda num_classes: build(
        num_classes,
        backbone="resnet10",
        fpn_channels=64,
        min_size=HEIGHT,
        max_size=WIDTH,
        returned_layers=[4],
        anchor_sizes=None if build is not retinanet else [[100, 201, 305]] * 3,
    )


@pytest.fixture(params=[faster_rcnn, retinanet, fcos], ids=["frcnn", "retinanet", "fcos"])
def detector(request: pytest.FixtureRequest) -> nn.Module:
    return create_detector(tiny(request.param), ["a", "b"]).model


def train(model: nn.Module, half: bool) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Losses, anchors and sampled proposals of a training forward on an image of over a thousand pixels."""
    anchors: list[Tensor] = []
    generator: Any = getattr(model, "rpn", model)
    hook = generator.anchor_generator.register_forward_hook(lambda m, a, out: anchors.extend(out))
    target = {"boxes": torch.tensor([[1001.0, 3.0, 1201.5, 47.25]]), "labels": torch.tensor([1])}
    torch.manual_seed(0)
    with capture(model) as seen, torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = model([torch.rand(3, HEIGHT, WIDTH)], [target])
    hook.remove()
    return losses, anchors, seen.proposals


def off_grid(boxes: list[Tensor]) -> bool:
    """Whether some coordinate above 1024 is no multiple of 8, as all of bfloat16 are there."""
    large = torch.cat(boxes)
    large = large[large > 1024]
    return bool((large % 8 != 0).any())


def test_anchors_and_proposals_are_not_rounded_under_autocast(detector: nn.Module) -> None:
    losses, anchors, proposals = train(detector, half=True)
    _, exact, _ = train(detector, half=False)
    assert all(torch.equal(a, b) for a, b in zip(anchors, exact, strict=True))
    assert {x.dtype for x in [*anchors, *proposals]} == {torch.float32}
    assert not proposals or off_grid(proposals)
    assert all(value.isfinite() for value in losses.values())


def test_torchvisions_own_are_rounded_or_there_would_be_no_need() -> None:
    model = tiny(retinanet)(3)
    _, anchors, _ = train(model, half=True)
    assert {x.dtype for x in anchors} == {torch.bfloat16}
    assert not off_grid([x.float() for x in anchors])


def test_float32_runs_are_bit_for_bit_what_torchvision_computes(detector: nn.Module) -> None:
    plain = as_torchvision_has_it(detector)
    for a, b in zip(train(detector, half=False)[0].items(), train(plain, half=False)[0].items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])


def test_detections_are_exact_too(detector: nn.Module) -> None:
    detector.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = detector([torch.rand(3, 64, 64)])
    assert found["boxes"].dtype == torch.float32


def as_torchvision_has_it(detector: nn.Module) -> nn.Module:
    kind = {"FasterRCNN": faster_rcnn, "RetinaNet": retinanet, "FCOS": fcos}[type(detector).__name__]
    plain = tiny(kind)(3)
    plain.load_state_dict(detector.state_dict())
    return plain.train(detector.training)

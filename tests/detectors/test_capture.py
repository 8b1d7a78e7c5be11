from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import sigmoid_focal_loss

from defeat.detectors import capture, faster_rcnn, fcos, inspect_detector, retinanet
from defeat.detectors.heads import anchor_logits, assign_anchors
from defeat.errors import ConfigError

SMALL = {"backbone": "resnet10", "fpn_channels": 8, "min_size": 64, "max_size": 64, "norm": "batch"}
IMAGES = [torch.rand(3, 48, 64), torch.rand(3, 64, 40)]
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 30, 40]]), "labels": torch.tensor([1])},
    {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)},
]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_training_forward_of_faster_rcnn_is_seen_whole() -> None:
    detector = faster_rcnn(3, **SMALL).train()
    with capture(detector) as seen:
        losses = detector(IMAGES, TARGETS)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert seen.images.shape == (2, 3, 64, 64)
    assert seen.image_sizes == [(48, 64), (64, 40)]
    assert list(seen.neck) == ["0", "1", "2", "3", "pool"]
    assert [x.shape[-1] for x in seen.neck.values()] == [16, 8, 4, 2, 1]
    assert [x.shape[1] for x in seen.stages.values()] == [64, 128, 256, 512]
    assert seen.class_logits is not None
    assert seen.class_logits.shape == (sum(map(len, seen.proposals)), 3)
    assert [len(t["boxes"]) for t in seen.targets] == [1, 0]


def test_what_is_seen_is_what_the_losses_come_from() -> None:
    detector = faster_rcnn(3, **SMALL).train()
    with capture(detector) as seen:
        losses = detector(IMAGES, TARGETS)
    (grad,) = torch.autograd.grad(losses["loss_objectness"], [seen.neck["0"]], retain_graph=True)
    assert grad.abs().sum() > 0
    assert seen.class_logits is not None
    (grad,) = torch.autograd.grad(losses["loss_classifier"], [seen.class_logits])
    assert grad.abs().sum() > 0


def test_boxes_come_in_pixels_of_the_resized_image() -> None:
    detector = retinanet(3, **{**SMALL, "min_size": 96, "max_size": 128}).train()
    with capture(detector) as seen:
        detector(IMAGES, TARGETS)
    scale = seen.image_sizes[0][0] / 48
    assert scale == 2
    torch.testing.assert_close(seen.targets[0]["boxes"], TARGETS[0]["boxes"] * scale)


def test_one_stage_detectors_have_no_proposals() -> None:
    detector = retinanet(3, **SMALL).train()
    with capture(detector) as seen:
        detector(IMAGES, TARGETS)
    assert seen.proposals == []
    assert seen.class_logits is None
    assert len(seen.neck) == 5


def test_retinanets_anchors_and_their_scores_are_seen() -> None:
    detector = retinanet(3, **SMALL).train()
    with capture(detector) as seen:
        losses = detector(IMAGES, TARGETS)
    count = 9 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
    assert [tuple(own.shape) for own in seen.anchors] == [(count, 4)] * 2
    assert seen.anchor_logits is not None
    assert seen.anchor_logits.shape == (2, count, 3)
    # The scores are those that the loss is computed from, on those anchors.
    matched = assign_anchors(detector, seen.anchors, seen.targets)
    total = torch.zeros(())
    for logits, positive, negative in zip(seen.anchor_logits, *matched[:2], strict=True):
        wanted = torch.zeros_like(logits)
        wanted[positive, 1] = 1  # the only object is of class 1
        keep = positive | negative
        total += sigmoid_focal_loss(logits[keep], wanted[keep], reduction="sum") / max(1, positive.sum())
    torch.testing.assert_close(losses["classification"], total / 2)


def test_anchors_of_an_image_without_objects_are_negative() -> None:
    detector = retinanet(3, **SMALL).train()
    with capture(detector) as seen:
        detector(IMAGES, TARGETS)
    positive, negative, _ = assign_anchors(detector, seen.anchors, seen.targets)
    assert positive[0].any()
    assert negative[0].any()
    assert not (positive & negative).any()
    assert not (positive | negative)[0].all()  # IoU between 0.4 and 0.5
    assert not positive[1].any()
    assert negative[1].all()


def test_a_second_scoring_of_the_same_pyramid_gives_the_same_scores() -> None:
    for build in (retinanet, fcos):
        detector = build(3, **{**SMALL, "fpn_channels": 64}).train()
        with capture(detector) as seen:
            detector(IMAGES, TARGETS)
        torch.testing.assert_close(anchor_logits(detector, seen.neck), seen.anchor_logits)


HEADS: dict[str, tuple[Callable[..., nn.Module], float, list[int], int]] = {
    "proposals": (faster_rcnn, 14, [4, 8, 16, 32, 64], 3),
    "anchors": (retinanet, 4, [8, 16, 32, 64, 128], 9),
    "points": (fcos, 8, [8, 16, 32, 64, 128], 1),
}


@pytest.mark.parametrize("head", HEADS)
def test_inspect_detector_tells_head_levels_and_anchors(head: str) -> None:
    build, cells, strides, count = HEADS[head]
    detector = build(3, **{**SMALL, "fpn_channels": 64}).eval()
    spec = inspect_detector(detector)
    assert (spec.head, spec.min_object_cells) == (head, cells)
    assert [x.stride for x in spec.neck] == strides
    assert [x.stride for x in spec.stages] == [s for s in strides if s <= 32]
    assert {x.channels for x in spec.neck} == {64}
    assert all(x.anchors == () for x in spec.stages)
    assert [len(x.anchors) for x in spec.neck] == [count] * 5
    # What the generator lays on an image: those of the origin, shifted from cell to cell.
    generator = next(m for m in detector.modules() if isinstance(m, AnchorGenerator))
    images = torch.zeros(1, 3, 256, 384)
    with torch.no_grad():
        maps = list(detector.backbone(images).values())
    (laid,) = generator(ImageList(images, [(256, 384)]), maps)
    for level, own, map_ in zip(
        spec.neck, laid.split([count * m[0, 0].numel() for m in maps]), maps, strict=True
    ):
        height, width = map_.shape[-2:]
        grid = own.reshape(height, width, count, 4)
        assert grid[0, 0].tolist() == [list(anchor) for anchor in level.anchors]
        for y, x in ((0, width - 1), (height - 1, 0), (height - 1, width - 1)):
            shift = torch.tensor([x, y, x, y]) * level.stride
            assert torch.equal(grid[y, x], grid[0, 0] + shift)


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("proposals", {"anchor_sizes": [(9, 17)] * 5, "aspect_ratios": (1.0, 2.0)}),
        ("anchors", {"anchor_sizes": [(10,), (20,), (40,), (80,), (160,)], "aspect_ratios": (1.0,)}),
        ("points", {"anchor_sizes": [(8,), (16,), (24,), (48,), (96,)]}),
    ],
)
def test_inspect_detector_sees_the_anchors_that_were_configured(head: str, settings: dict[str, Any]) -> None:
    level = inspect_detector(HEADS[head][0](3, **{**SMALL, "fpn_channels": 64}, **settings)).neck[1]
    sides = sorted({round(((x2 - x1) * (y2 - y1)) ** 0.5) for x1, y1, x2, y2 in level.anchors})
    wanted = settings["anchor_sizes"][1]
    assert len(level.anchors) == len(wanted) * len(settings.get("aspect_ratios", (1,)))
    assert all(min(abs(size - side) for size in wanted) <= 1 for side in sides)


def test_captured_anchors_lie_level_after_level_finest_first() -> None:
    detector = retinanet(3, **SMALL).eval()
    with torch.no_grad(), capture(detector) as seen:
        detector(IMAGES)
    origins = torch.tensor([x.anchors for x in inspect_detector(detector).neck])
    starts = torch.tensor([0, 64, 64 + 16, 64 + 16 + 4, 64 + 16 + 4 + 1]) * 9
    for own in seen.anchors:
        for level, start in enumerate(starts.tolist()):
            assert torch.equal(own[start : start + 9], origins[level])


def test_hooks_go_when_the_forward_ends() -> None:
    detector = faster_rcnn(3, **SMALL).train()
    with capture(detector):
        assert hooks(detector) == 5
        detector(IMAGES, TARGETS)
    assert hooks(detector) == 0


def test_hooks_go_on_an_exception_too() -> None:
    detector = faster_rcnn(3, **SMALL).train()
    with pytest.raises(AssertionError, match="All bounding boxes"), capture(detector):
        detector(IMAGES, [{**TARGETS[0], "boxes": torch.zeros(1, 4)}, TARGETS[1]])
    assert hooks(detector) == 0


def test_nothing_else_keeps_the_tensors_alive() -> None:
    detector = faster_rcnn(3, **SMALL).eval()
    with torch.no_grad(), capture(detector) as seen:
        detector(IMAGES)
    feature = weakref.ref(seen.neck["0"])
    del seen
    gc.collect()
    assert feature() is None


def test_inspect_detector_leaves_the_detector_as_it_was() -> None:
    detector = faster_rcnn(3, **SMALL).train()
    detector.rpn.eval()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    inspect_detector(detector)
    assert detector.training
    assert not detector.rpn.training
    assert detector.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    assert hooks(detector) == 0


def test_a_backbone_is_looked_at_once_and_another_in_its_place_anew() -> None:
    one, other = (faster_rcnn(3, **{**SMALL, "fpn_channels": channels}) for channels in (64, 32))
    seen: list[nn.Module] = []
    for detector in (one, other):
        detector.backbone.register_forward_hook(lambda module, *_: seen.append(module))
    first = inspect_detector(one)
    assert inspect_detector(one) == first
    assert seen == [one.backbone]
    one.backbone = other.backbone
    assert {level.channels for level in inspect_detector(one).neck} == {32}
    assert {level.channels for level in first.neck} == {64}
    assert seen[1:] == [other.backbone]


def test_inspect_detector_refuses_what_it_cannot_see_into() -> None:
    with pytest.raises(ConfigError, match="Linear is no Faster R-CNN"):
        inspect_detector(nn.Linear(2, 2))

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from defeat.detectors import capture, examine, faster_rcnn, retinanet
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


def test_examine_leaves_the_detector_as_it_was() -> None:
    detector = faster_rcnn(3, **SMALL).train()
    detector.rpn.eval()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    examine(detector)
    assert detector.training
    assert not detector.rpn.training
    assert detector.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    assert hooks(detector) == 0


def test_examine_refuses_what_it_cannot_see_into() -> None:
    with pytest.raises(ConfigError, match="Linear has no `backbone`"):
        examine(nn.Linear(2, 2))

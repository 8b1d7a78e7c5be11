"""Adapted modules: torchvision's numbers in float32, bit for bit, and what half precision needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from defeat.detectors import capture, create_detector, faster_rcnn, fcos, retinanet
from defeat.detectors.adapted import HalfFrozenBatchNorm2d, PixelTransform, adapt
from tests.helpers.narrow import NARROW

HEIGHT, WIDTH = 64, 1333
SIZE = {"min_size": HEIGHT, "max_size": WIDTH}


@pytest.fixture(scope="module", params=[FasterRCNN, RetinaNet, FCOS])
def plain(request: pytest.FixtureRequest) -> nn.Module:
    """A detector as torchvision builds it, with frozen normalisation that is not the identity."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[3, 4],
    )
    sizes = ((100, 201, 305),) * 3 if request.param is not FCOS else ((8,), (16,), (32,))
    name = "rpn_anchor_generator" if request.param is FasterRCNN else "anchor_generator"
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0) if request.param is not FCOS else (1.0,),) * 3)
    detector = request.param(backbone, num_classes=3, **SIZE, **{name: anchors})
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d):
            fill(module)
    return detector  # type: ignore[no-any-return]


def fill(norm: FrozenBatchNorm2d) -> FrozenBatchNorm2d:
    for name, low, high in (
        ("weight", 0.5, 1.0),
        ("bias", -0.5, 0.5),
        ("running_mean", -0.5, 0.5),
        ("running_var", 0.5, 2.0),
    ):
        norm.get_buffer(name).uniform_(low, high)
    return norm


def adapted(detector: nn.Module) -> nn.Module:
    copied = copy.deepcopy(detector)
    adapt(copied)
    return copied


def train(model: nn.Module, half: bool) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Losses, anchors and sampled proposals of a training forward on an image of over a thousand pixels."""
    anchors: list[Tensor] = []
    generator: Any = getattr(model, "rpn", model)
    hook = generator.anchor_generator.register_forward_hook(lambda m, a, out: anchors.extend(out))
    target = {"boxes": torch.tensor([[1001.0, 3.0, 1201.5, 47.25]]), "labels": torch.tensor([1])}
    torch.manual_seed(0)
    with capture(model) as captured, torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = model([torch.rand(3, HEIGHT, WIDTH)], [target])
    hook.remove()
    return losses, anchors, captured.proposals


def test_a_float32_step_is_bit_for_bit_what_torchvision_computes(plain: nn.Module) -> None:
    ours = adapted(plain)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    found = []
    for model in (ours, plain):
        losses, _, _ = train(model, half=False)
        model.zero_grad()
        sum(losses.values()).backward()
        found.append({**losses, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert value.equal(found[1][name]), name


def test_boxes_are_not_rounded_under_autocast_and_torchvisions_own_are(plain: nn.Module) -> None:
    ours = adapted(plain)
    losses, anchors, proposals = train(ours, half=True)
    _, exact, _ = train(ours, half=False)
    assert all(torch.equal(a, b) for a, b in zip(anchors, exact, strict=True))
    assert {x.dtype for x in [*anchors, *proposals]} == {torch.float32}
    assert not proposals or off_grid(proposals)
    assert all(value.isfinite() for value in losses.values())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = ours.eval()([torch.rand(3, 64, 64)])
    assert found["boxes"].dtype == torch.float32
    # torchvision's pyramid stays float32 behind its float32 normalisation unless a convolution is the last.
    _, rounded, _ = train(plain, half=True)
    assert {x.dtype for x in rounded} == {torch.bfloat16}


def off_grid(boxes: list[Tensor]) -> bool:
    """Whether some coordinate above 1024 is no multiple of 8, as all of bfloat16 are there."""
    large = torch.cat(boxes)
    large = large[large > 1024]
    return bool((large % 8 != 0).any())


@pytest.mark.parametrize("build", [faster_rcnn, retinanet, fcos])
def test_builders_construct_what_adapt_puts_in(build: Callable[..., nn.Module]) -> None:
    def kinds(detector: nn.Module) -> list[tuple[str, type, type]]:
        return [
            (name, type(module), type(getattr(module, "box_coder", None)))
            for name, module in detector.named_modules()
        ]

    detector = build(3, backbone=NARROW, fpn_channels=64)
    before = kinds(detector)
    torchvisions = (AnchorGenerator, FrozenBatchNorm2d, MultiScaleRoIAlign)
    assert sum(issubclass(kind, torchvisions) for _, kind, _ in before) > 10
    adapt(detector)
    assert kinds(detector) == before


@pytest.mark.parametrize("size", [(1, 65), (2, 640), (640, 1), (49, 49 * 64), (11, 640), (64, 64)])
def test_of_the_longest_image_a_pixel_is_left(size: tuple[int, int]) -> None:
    height, width = size
    settings = (32, 64, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    image, box = torch.rand(3, height, width), torch.tensor([[0.0, 0.0, width, height]])
    images, (target,) = PixelTransform(*settings)([image], [{"boxes": box}])
    resized = images.image_sizes[0]
    assert target["boxes"][0, 2:].tolist() == pytest.approx(resized[::-1])
    assert 1 <= min(resized) <= max(resized) <= 64
    if min(size) * 64 > max(size):  # torchvision can
        assert torch.equal(images.tensors, GeneralizedRCNNTransform(*settings)([image])[0].tensors)


def test_subclasses_of_others_stay() -> None:
    class Norm(FrozenBatchNorm2d):
        pass

    class Pool(MultiScaleRoIAlign):
        pass

    def build(num_classes: int) -> nn.Module:
        detector = faster_rcnn(num_classes, backbone=NARROW, fpn_channels=16)
        detector.backbone.body.bn1 = Norm(64)
        detector.roi_heads.box_roi_pool = Pool(["0"], 7, 2)
        return detector

    detector: Any = create_detector(build, ["a"]).model
    assert type(detector.backbone.body.bn1) is Norm
    assert type(detector.roi_heads.box_roi_pool) is Pool


def norms() -> tuple[FrozenBatchNorm2d, FrozenBatchNorm2d]:
    torch.manual_seed(0)
    theirs = fill(FrozenBatchNorm2d(6))
    ours = HalfFrozenBatchNorm2d(6)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_torchvisions_bit_for_bit(dtype: torch.dtype) -> None:
    ours, theirs = norms()
    x = torch.randn(2, 6, 5, 7, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_half_stays_half_with_its_rounding_and_the_gradient_of_the_scale(
    dtype: torch.dtype, error: float
) -> None:
    ours, theirs = norms()
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
    ours = adapted(theirs)
    weights = sum(p.numel() * p.element_size() for p in theirs.parameters())
    x = torch.randn(2, 3, 256, 256)
    assert kept(ours, x) - weights / 2 < 0.6 * (kept(theirs, x) - weights / 2)

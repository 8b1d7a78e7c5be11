"""What masks and losses ask of a device: no answer while it computes, no more for more boxes, no spare copy.

Looked at on the CPU, where every operation passes by, and on the meta device, which has no numbers to give;
on a GPU, where there is one, CUDA itself says who waited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from defeat.detectors import FrozenTeacher
from defeat.detectors.capture import Captured, DetectorSpec, Level
from defeat.detectors.heads import Assigned, Proposals
from defeat.distill import (
    AnchorTerm,
    DistillBatch,
    FeatureTerm,
    Grids,
    HeadTerm,
    WholeMapTerm,
    channel_loss,
    decoupled_binary_kl,
    decoupled_feature_loss,
    decoupled_kl,
    masks,
    pearson_loss,
)
from defeat.distill.masks import Mask
from defeat.distill.terms import anchors, head
from tests.helpers.gpu import gpu_waits

STRIDES = [4, 8, 16]
SHAPES = [(16, 20), (8, 10), (4, 5)]
ANCHORS = tuple((-2.0 * k, -2.0 * k, 2.0 * k, 2.0 * k) for k in (4, 8))
MASKS: list[Mask] = [function for name, function in vars(masks).items() if name.endswith("_mask")]

WAITS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive"),
}
"""Operations whose result, or its size, the host must have before it goes on."""


class Operations(TorchDispatchMode):
    """Keeps the operations that pass by, and lets none pass that waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, tuple[Tensor, ...]]] = []
        """Names and what they made; views are not among them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **kwargs)
        given, made = ([x for x in tree_leaves(some) if isinstance(x, Tensor)] for some in (args, result))
        by_numbers = name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None)
        by_mask = name.startswith(("index", "_index_put")) and any(
            x.dtype == torch.bool for x in indices(args)
        )
        moved = len({x.device.type for x in (*given, *made)}) > 1 and any(x.ndim for x in given)
        blocking = moved and not (name == "_to_copy" and kwargs.get("non_blocking"))
        if by_numbers or by_mask or blocking:
            raise AssertionError(f"{func} waits for the device")
        if not func.is_view:
            self.operations.append((name, tuple(made)))
        return result


def indices(args: Any) -> list[Tensor]:
    """Those of ``x[...]``."""
    return [x for arg in args if isinstance(arg, list | tuple) for x in arg if isinstance(x, Tensor)]


class Size(NamedTuple):
    """How many images there are, and boxes in each."""

    images: int
    boxes: int


SIZES = [Size(1, 1), Size(16, 1), Size(1, 500), Size(16, 500)]


def boxes(size: Size, device: str) -> list[Tensor]:
    corner, sides = torch.rand(2, size.images, size.boxes, 2) * torch.tensor([80.0, 64.0])
    found = torch.cat([corner, corner + sides / 2], dim=2)
    return list(found.to(device).unbind(0))


def grids(size: Size, device: str) -> Grids:
    anchors = [torch.tensor(ANCHORS, device=device) * stride / 4 for stride in STRIDES]
    return Grids(boxes(size, device), SHAPES, STRIDES, min_object_cells=4.0, anchors=anchors)


def features(size: Size, device: str, channels: int = 3) -> dict[str, Tensor]:
    return {
        str(stride): torch.rand(size.images, channels, *shape, device=device, requires_grad=True)
        for stride, shape in zip(STRIDES, SHAPES, strict=True)
    }


def spec(head: Any) -> DetectorSpec:
    levels = tuple(Level(str(stride), stride, 3, ANCHORS) for stride in STRIDES)
    return DetectorSpec(levels, levels, head)


# --- what is computed: each returns scalars with gradients, or masks -------------------------------------


def draw(mask: Mask) -> Callable[[Size, str], Callable[[], Any]]:
    def prepare(size: Size, device: str) -> Callable[[], Any]:
        on = grids(size, device)
        return lambda: mask(on)

    return prepare


def compare(loss: Callable[..., Any]) -> Callable[[Size, str], Callable[[], Any]]:
    """A loss of maps, with a mask where it takes one."""

    def prepare(size: Size, device: str) -> Callable[[], Any]:
        ours, theirs = features(size, device)["4"], features(size, device)["4"].detach()
        mask = [torch.rand(size.images, *SHAPES[0], device=device)] if loss is decoupled_feature_loss else []
        return lambda: loss(ours, theirs, *mask)

    return prepare


def classify(loss: Callable[..., Any], halves: int) -> Callable[[Size, str], Callable[[], Any]]:
    """A loss of class scores, 64 rows an image."""

    def prepare(size: Size, device: str) -> Callable[[], Any]:
        ours, theirs = torch.rand(2, 64 * size.images, 5, device=device).unbind(0)
        chosen = torch.rand(2, len(ours), device=device).gt(0.5).unbind(0)
        ours.requires_grad_()
        return lambda: loss(ours, theirs, *chosen[:halves], object_temperature=2.0)

    return prepare


def teach(build: Callable[..., nn.Module], head: Any, **settings: Any) -> Callable[..., Callable[[], Any]]:
    """A term's own arithmetic: what the detectors compute for it is there already."""

    def prepare(size: Size, device: str) -> Callable[[], Any]:
        term = build(spec(head), spec(head), **settings).to(device)
        captured = Captured(
            neck=features(size, device),
            stages=features(size, device),
            targets=[{"boxes": own} for own in boxes(size, device)],  # type: ignore[typeddict-item]
            class_logits=torch.rand(64 * size.images, 5, device=device, requires_grad=True),
            anchor_logits=torch.rand(size.images, 64, 5, device=device, requires_grad=True),
        )
        teacher_captures = Captured(
            neck={name: x.detach() for name, x in features(size, device).items()},
            stages={name: x.detach() for name, x in features(size, device).items()},
        )
        pair = DistillBatch(nn.Identity(), FrozenTeacher(nn.Identity()), captured, teacher_captures)
        return lambda: list(term(pair).values())

    return prepare


@contextmanager
def detectors(size: Size, device: str) -> Iterator[None]:
    """What terms ask detectors for, whose matchers and samplers are torchvision's, is drawn beforehand."""
    rows = 64 * size.images
    scores, again = torch.rand(2, rows, 5, device=device).unbind(0)
    labels = torch.rand(rows, device=device).gt(0.5).long()
    positive = torch.rand(size.images, 64, device=device) > 0.5
    proposals = Proposals(boxes(size, device), labels)
    student = {
        "label_proposals": lambda *args: proposals,
        "box_head_logits": lambda *args: scores.clone(),
        "assign_anchors": lambda *args: Assigned(positive, ~positive, positive.long()),
    }
    teacher = {
        "sample_proposals": lambda *args: proposals,
        "box_head_logits": lambda *args: again.clone(),
        "anchor_logits": lambda *args: again.view(size.images, 64, 5),
    }
    scores.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        for name, function in student.items():
            patch.setattr(anchors if "anchor" in name else head, name, function)
        for name, function in teacher.items():
            patch.setattr(FrozenTeacher, name, function)
        yield


WEIGHTS = {"object_weight": 4.0, "background_weight": 16.0}
CASES: dict[str, Callable[[Size, str], Callable[[], Any]]] = {
    **{mask.__name__: draw(mask) for mask in MASKS},
    **{loss.__name__: compare(loss) for loss in (decoupled_feature_loss, pearson_loss)},
    "channel_loss": compare(lambda s, t: channel_loss(s, t, temperature=2.0)),
    "decoupled_kl": classify(decoupled_kl, 1),
    "decoupled_kl_pooled": classify(lambda *x, **more: decoupled_kl(*x, pooled=True, **more), 1),
    "decoupled_binary_kl": classify(decoupled_binary_kl, 2),
    **{
        f"FeatureTerm_{mask.__name__}": teach(FeatureTerm, "proposals", mask=mask, **WEIGHTS)
        for mask in MASKS
    },
    "FeatureTerm_stages": teach(FeatureTerm, "proposals", maps="stages", mask=masks.shared_mask, **WEIGHTS),
    "HeadTerm_teacher": teach(HeadTerm, "proposals", **WEIGHTS),
    "HeadTerm_student": teach(HeadTerm, "proposals", proposals="student", **WEIGHTS),
    "AnchorTerm": teach(AnchorTerm, "anchors", **WEIGHTS),
    "WholeMapTerm": teach(WholeMapTerm, "proposals", weight=2.0, loss=pearson_loss),
}


def compute(run: Callable[[], Any]) -> None:
    """Forward, and backward where there is one."""
    scalars = [x for x in tree_leaves(run()) if x.requires_grad]
    if scalars:
        torch.stack([x.sum() for x in scalars]).sum().backward()


def operations(name: str, size: Size, device: str) -> Operations:
    with detectors(size, device):
        run = CASES[name](size, device)
        with Operations() as watched:
            compute(run)
    return watched


# --- nothing waits, nothing grows ------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_and_operations_do_not_grow_with_images_or_boxes(name: str, device: str) -> None:
    counts = {size: len(operations(name, size, device).operations) for size in SIZES}
    assert min(counts.values()) > 0
    assert len(set(counts.values())) == 1, counts


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_a_gpu(name: str) -> None:
    size = Size(2, 100)
    with detectors(size, "cuda"):
        run = CASES[name](size, "cuda")
        compute(run)  # what CUDA sets up once may wait
        with gpu_waits() as waits:
            compute(run)
    assert waits == []


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0.5],
        lambda x: x.nonzero(),
        lambda x: x.clone().__setitem__(x >= 0, torch.ones(4)),
        lambda x: x.unique(),
        lambda x: torch.arange(2).repeat_interleave(torch.tensor([1, 2])),
        lambda x: torch.nn.functional.one_hot(x.long()),
    ],
)
def test_the_watch_catches_what_waits(waiting: Callable[[Tensor], Any]) -> None:
    with Operations(), pytest.raises(AssertionError, match="waits for the device"):
        waiting(torch.rand(4))


def test_the_watch_catches_what_waits_for_a_copy() -> None:
    for moving in (
        lambda: torch.ones(3).to("meta"),
        lambda: torch.empty(3, device="meta").copy_(torch.ones(3)),
    ):
        with Operations(), pytest.raises(AssertionError, match="waits for the device"):
            moving()


# --- no spare copies of maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16])
def test_the_feature_loss_makes_and_keeps_one_tensor_of_the_maps_size(teacher_dtype: torch.dtype) -> None:
    student = torch.rand(2, 8, 5, 6, requires_grad=True)
    teacher, mask = torch.rand(2, 8, 5, 6).to(teacher_dtype), torch.rand(2, 5, 6)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with Operations() as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = torch.stack(decoupled_feature_loss(student, teacher, mask)).sum()
    with Operations() as backward:
        torch.autograd.grad(loss, student)
    forward_made, backward_made = (
        [name for name, made in watched.operations for x in made if x.numel() == student.numel()]
        for watched in (forward, backward)
    )
    assert forward_made == ["sub"]
    assert backward_made == ["mul"]
    assert sum(x.numel() == student.numel() for x in kept) == 1


@pytest.mark.parametrize(("temperature", "times"), [(2.0, 1), (3.0, 2)])
def test_class_scores_are_compared_once_where_the_halves_share_their_temperature(
    temperature: float, times: int
) -> None:
    ours, theirs = torch.rand(2, 6, 4).unbind(0)
    chosen = torch.rand(6) > 0.5
    warm = {"object_temperature": 2.0, "background_temperature": temperature}
    for loss, name, each in ((decoupled_kl, "_log_softmax", 2), (decoupled_binary_kl, "sigmoid", 2)):
        more = [~chosen] if loss is decoupled_binary_kl else []
        with Operations() as watched:
            loss(ours, theirs, chosen, *more, **warm)  # type: ignore[operator]
        assert [own for own, _ in watched.operations].count(name) == each * times

"""What a worker process sends comes out as it went in."""

from __future__ import annotations

import pickle

import torch

from defeat.data.batch_transfer import PackedBatch
from defeat.types import Batch, Target


def target(boxes: int, index: int) -> Target:
    corners = torch.rand(boxes, 4) * 100
    return Target(
        boxes=corners,
        labels=torch.randint(1, 91, (boxes,)),
        ignore=torch.rand(boxes) > 0.5,
        area=corners.sum(dim=1),
        index=torch.tensor(index),
    )


def batch() -> Batch:
    shapes = [(3, 5, 7), (3, 4, 2), (3, 9, 3)]
    images = [torch.randint(256, shape, dtype=torch.uint8) for shape in shapes]
    return Batch(images, [target(3, 90), target(0, 4), target(2, 2**40)])


def test_it_becomes_the_batch_again() -> None:
    before = batch()
    after = pickle.loads(pickle.dumps(PackedBatch(before)))
    assert type(after) is Batch
    for one, other in zip(before.images, after.images, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert other.is_contiguous()
    for mine, theirs in zip(before.targets, after.targets, strict=True):
        assert list(mine) == list(theirs)
        for name, value in mine.items():
            assert value.dtype == theirs[name].dtype
            assert torch.equal(value, theirs[name])


def test_what_comes_out_may_be_changed() -> None:
    before = batch()
    after = pickle.loads(pickle.dumps(PackedBatch(before)))
    after.images[0].zero_()
    after.targets[0]["boxes"].zero_()
    assert torch.equal(after.images[1], before.images[1])
    assert torch.equal(after.targets[2]["boxes"], before.targets[2]["boxes"])


def test_all_images_travel_in_one_tensor_and_targets_in_none() -> None:
    _, parts = PackedBatch(batch()).__reduce__()
    assert pickle.loads(parts[0]).shape == (3 * (5 * 7 + 4 * 2 + 9 * 3),)
    assert len(parts[0]) < 1000, "a handle, not the pixels"
    assert not any(isinstance(part, torch.Tensor) for group in parts[1:] for part in group)

"""A batch on its way from a worker process: few large pieces in place of many small ones."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defeat.data.worker_errors import hand_over_error
from defeat.errors import WorkerError
from defeat.types import Batch, Target

Arrays = tuple[
    NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32], NDArray[np.int64]
]
"""Boxes, labels, ignore, area of all images one after another, and the index of each image."""


class PackedBatch:
    """A batch as a worker process sends it; unpickled it is a :class:`~defeat.types.Batch` again.

    Every tensor that a worker process sends is a shared memory file and an open descriptor of its own, and
    costs both sides more than a small image takes to decode. So all images travel in one, and the targets,
    which are small, by value. The tensors that come out do not overlap and may be changed in place.

    The images are put into shared memory here, where an error reaches the main process. The queue's thread,
    which would do it otherwise, prints its errors and drops the batch, for which the main process waits.

    Args:
        batch: uint8 images on the CPU, with their targets.

    Raises:
        WorkerError: there is no room in shared memory, or too many files are open.
    """

    def __init__(self, batch: Batch) -> None:
        pixels = torch.cat([image.reshape(-1) for image in batch.images])
        try:
            self.pixels = bytes(ForkingPickler.dumps(pixels))
        except (RuntimeError, OSError) as error:
            raise WorkerError(hand_over_error(error)) from error
        self.shapes = [tuple(image.shape) for image in batch.images]
        self.counts = [len(target["labels"]) for target in batch.targets]
        self.arrays: Arrays = (
            _joined([target["boxes"] for target in batch.targets]),
            _joined([target["labels"] for target in batch.targets]),
            _joined([target["ignore"] for target in batch.targets]),
            _joined([target["area"] for target in batch.targets]),
            np.array([int(target["index"]) for target in batch.targets], dtype=np.int64),
        )

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[object, ...]]:
        return _unpack, (self.pixels, self.shapes, self.counts, self.arrays)


def _unpack(pixels: bytes, shapes: Sequence[tuple[int, ...]], counts: Sequence[int], arrays: Arrays) -> Batch:
    images = pickle.loads(pixels).split([math.prod(shape) for shape in shapes])
    boxes, labels, ignore, area = (torch.from_numpy(array).split(list(counts)) for array in arrays[:4])
    targets = [
        Target(boxes=box, labels=label, ignore=ignored, area=areas, index=index)
        for box, label, ignored, areas, index in zip(
            boxes, labels, ignore, area, torch.from_numpy(arrays[4]).unbind(), strict=True
        )
    ]
    return Batch([image.view(shape) for image, shape in zip(images, shapes, strict=True)], targets)


def _joined(parts: Sequence[Tensor]) -> NDArray:
    return torch.cat(list(parts)).numpy()

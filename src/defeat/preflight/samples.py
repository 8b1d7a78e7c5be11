"""Samples of a run's data, taken in this process and within a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from defeat.types import Batch, Target

Sample = tuple[Tensor, Target]
"""(3, H, W) uint8 image and its boxes."""


def transform_of(model: nn.Module) -> Any:
    """A detector's ``GeneralizedRCNNTransform``."""
    return cast(Any, model).transform


def timed_samples(loader: DataLoader[Batch], order: Iterator[Any]) -> Iterator[tuple[Sample, float]]:
    """Decode samples in this process, each with the seconds that it took.

    No worker process is started: that takes longer than the few images that are wanted.
    """
    for which in order:
        started = time.perf_counter()
        sample = cast(Sample, loader.dataset[which])
        yield sample, time.perf_counter() - started


def spread(images: int) -> Iterator[int]:
    """Positions in a split, mixed, so that any number of first ones is from all over it."""
    yield from torch.randperm(images, generator=torch.Generator().manual_seed(0)).tolist()


def until(seconds: float) -> Callable[[], bool]:
    """Say whether so many seconds have passed since now."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def chunks(samples: Iterator[Sample], size: int) -> Iterator[Batch]:
    """Put samples together to batches; the last may be smaller."""
    while taken := list(islice(samples, size)):
        yield Batch([image for image, _ in taken], [target for _, target in taken])

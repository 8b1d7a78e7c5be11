"""The run that is looked at, and samples of its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from defeat.data import DetectionDataModule
from defeat.detectors import Detector, FrozenTeacher
from defeat.distill import Distiller
from defeat.training.loss_gradients import Precision, precision_of
from defeat.training.module import DetectionModule
from defeat.types import Batch, Target

Sample = tuple[Tensor, Target]
"""(3, H, W) uint8 image and its boxes."""


class Pair(NamedTuple):
    """What a distilled run has beside its student."""

    teacher: Detector
    model: FrozenTeacher
    """The teacher as the module holds it."""
    distiller: Distiller


class Subject(NamedTuple):
    """A run that is built and has not begun."""

    module: DetectionModule
    data: DetectionDataModule
    trainer: Trainer
    student: Detector
    teacher: Detector | None
    config: Mapping[str, Any]
    """The run's configuration in plain containers."""

    @property
    def pair(self) -> Pair | None:
        """Teacher and distiller; None for a plain run."""
        if self.teacher is None or self.module.teacher is None or self.module.distiller is None:
            return None
        return Pair(self.teacher, self.module.teacher, self.module.distiller)

    @property
    def device(self) -> torch.device:
        """Where the training of the first process will compute."""
        return self.trainer.strategy.root_device

    @property
    def precision(self) -> Precision:
        """Context of a forward, as the training will have it."""
        return precision_of(self.trainer)


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

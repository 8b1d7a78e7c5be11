"""Random numbers as a function of where a training stands, so that nothing of the past need be kept."""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The uses of random numbers, each of which has a stream of its own."""

    SHUFFLE = 1
    """The order of the images of an epoch."""
    AUGMENTATION = 2
    """The augmentation of one image."""
    STEP = 3
    """The anchors and proposals that a detector samples in a training step."""


def derive_seed(stream: Stream, *numbers: int) -> int:
    """Derive a 63-bit seed from several non-negative numbers, such as a run's seed, epoch and position."""
    # Without their count, numbers that end in zeros would be the same as fewer numbers.
    words = np.random.SeedSequence([stream, len(numbers), *numbers]).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def seed_all(seed: int) -> None:
    """Seed torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_cpu(seed: int) -> None:
    """Seed torch's generator of the CPU alone, NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

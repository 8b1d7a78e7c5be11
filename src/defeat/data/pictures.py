"""Pictures of a split decoded once: which cannot be, and which look like those of another split."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from defeat.data.dataset import decode
from defeat.errors import DataError
from defeat.types import Annotations, Problem

SIDE = 32
"""Cells along a side of the small picture that stands for the whole."""

WAVES = 12
"""Frequencies along a side that are compared: what is finer changes when a picture is saved again."""

NEARLY = 0.993
"""Correlation from which two pictures are nearly the same. Copies that were resized or compressed mostly have
0.998 and more, different pictures of one kind, such as blood under a microscope, below 0.92."""

FLAT = 4.0
"""Standard deviation, of 255 grey values, below which a small picture shows too little to be compared."""

_ROWS = 1024  # compared at a time


class Pictures(NamedTuple):
    """The result of :func:`look_at`, about N pictures."""

    positions: Sequence[int]
    """N positions in the records."""
    errors: dict[int, str]
    """Position to the message, for those that cannot be decoded."""
    descriptors: NDArray[np.float32]
    """(N, WAVES ** 2 - 1) of length 1, whose products are correlations; zeros where nothing is to be seen."""


def look_at(
    annotations: Annotations,
    positions: Sequence[int],
    advance: Callable[[], None] = lambda: None,
    *,
    compared: bool = True,
) -> Pictures:
    """Decode pictures as the training does, on all cores, and describe each by its coarse light and shade.

    Args:
        annotations: a split whose rule for orientations is decided.
        positions: which of its records.
        advance: is called after each picture.
        compared: False leaves the descriptors zero, for pictures that are not compared with others.
    """
    errors: dict[int, str] = {}
    nothing = np.zeros(WAVES**2 - 1, dtype=np.float32)

    def look(position: int) -> NDArray[np.float32]:
        try:
            image = decode(annotations.records[position], annotations)
            return _describe(image) if compared else nothing
        except DataError as error:
            errors[position] = str(error)
            return nothing
        finally:
            advance()

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        described = list(pool.map(look, positions))
    descriptors = np.stack(described) if described else nothing[None][:0]
    return Pictures(positions, dict(sorted(errors.items())), descriptors)


def undecodable_problems(pictures: Pictures, split: str, *, skip: bool = False) -> Iterator[Problem]:
    """Tell of pictures that cannot be decoded.

    Args:
        pictures: what was looked at.
        split: its name.
        skip: whether the data set leaves them out.
    """
    if pictures.errors:
        first = next(iter(pictures.errors.values()))
        yield Problem(
            f"{len(pictures.errors)} of {len(pictures.positions)} {split} pictures cannot be used; "
            f"the first: {first}",
            "correct them, or leave them out by data.on_error=skip",
            severe=not skip,
        )


def nearly_same(first: Pictures, second: Pictures) -> list[tuple[int, int]]:
    """Return the positions in both of pictures that are nearly the same, one at most for each of the second.

    A copy that was resized, compressed or made a little brighter counts; a cropped or mirrored one does not.
    """
    pairs = []
    if not len(first.positions):
        return []
    for start in range(0, len(second.positions), _ROWS):
        alike = second.descriptors[start : start + _ROWS] @ first.descriptors.T  # (rows, N)
        nearest = alike.argmax(axis=1)
        for row in np.flatnonzero(alike[np.arange(len(nearest)), nearest] >= NEARLY).tolist():
            pairs.append((first.positions[nearest[row]], second.positions[start + row]))
    return pairs


def spread(images: int, most: int) -> Sequence[int]:
    """Return at most so many positions, all over a split."""
    places: list[int] = np.unique(np.linspace(0, images - 1, min(images, most)).astype(int)).tolist()
    return places


def _describe(image: Tensor) -> NDArray[np.float32]:
    from scipy.fft import dctn  # costly to import, and a training compares nothing

    small = F.adaptive_avg_pool2d(image.to(torch.float32).mean(dim=0)[None], SIDE)[0].numpy()  # (SIDE, SIDE)
    if small.std() < FLAT:
        return np.zeros(WAVES**2 - 1, dtype=np.float32)
    waves = dctn(small, norm="ortho")[:WAVES, :WAVES].ravel()[1:]
    described: NDArray[np.float32] = (waves / np.linalg.norm(waves)).astype(np.float32)
    return described

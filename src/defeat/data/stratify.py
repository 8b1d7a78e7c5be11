"""Iterative stratification: images with several classes, divided so that each class is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratify(
    present: NDArray[np.int64], sizes: NDArray[np.int64], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Give each group of images to a part, so that all parts have their share of every class.

    The rarest class goes first: each of its groups goes to the part that lacks most of the class, then to the
    one that lacks most images (Sechidis et al., On the stratification of multi-label data, 2011).

    Args:
        present: (G, K) in how many images of each group each class has objects.
        sizes: (G,) number of images in each group.
        fractions: P shares that make up 1.
        seed: decides the order of the groups, and between parts that lack as much.

    Returns:
        (G,) the number of each group's part; each part has a group if there are as many.
    """
    rng = np.random.default_rng(seed)
    shares = np.array(fractions, dtype=np.float64)
    lacking = shares[:, None] * present.sum(axis=0)  # (P, K)
    room = shares * sizes.sum()  # (P,)
    part = np.full(len(present), -1, dtype=np.int64)
    order = rng.permutation(len(present))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups while there is room for them
    left = present.copy()
    while (counts := left.sum(axis=0)).any():
        rarest = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
        for group in order[left[order, rarest] > 0].tolist():
            part[group] = _neediest(lacking[:, rarest], room, rng)
            lacking[part[group]] -= present[group]
            room[part[group]] -= sizes[group]
            left[group] = 0
    for group in order[part[order] < 0].tolist():  # without objects
        part[group] = _neediest(room, room, rng)
        room[part[group]] -= sizes[group]
    return _none_empty(part, sizes, len(shares))


def _neediest(lacking: NDArray[np.float64], room: NDArray[np.float64], rng: np.random.Generator) -> int:
    needy = np.flatnonzero(lacking >= lacking.max() - 1e-9)
    needy = needy[room[needy] >= room[needy].max() - 1e-9]
    return int(rng.choice(needy)) if len(needy) > 1 else int(needy[0])


def _none_empty(part: NDArray[np.int64], sizes: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Give an empty part the smallest group of the part with most groups."""
    for empty in set(range(parts)) - set(part.tolist()):
        fullest = np.bincount(part, minlength=parts).argmax()
        groups = np.flatnonzero(part == fullest)
        part[groups[sizes[groups].argmin()]] = empty
    return part

"""Classes that cannot be learned or measured, and names that probably mean one class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from defeat.io.text import counted, few, quote
from defeat.types import Annotations, Problem

FEW_BOXES = 5
"""Fewer training boxes than this of a class are too few to learn it from."""

_LONG = 5
"""Letters from which on names that differ in one are probably one: car and cat are not."""


def count_boxes(annotations: Annotations) -> NDArray[np.int64]:
    """Return (K,) how many boxes each class has, without those to ignore."""
    labels = [record.labels[~record.ignore] for record in annotations.records]
    numbers = np.concatenate([np.empty(0, np.int64), *labels])
    return np.bincount(numbers, minlength=len(annotations.classes) + 1)[1 : len(annotations.classes) + 1]


def class_problems(annotations: Annotations, *, trained: bool) -> Iterator[Problem]:
    """Tell where there is nothing to find, and which classes a detector cannot learn.

    Args:
        annotations: a whole split.
        trained: whether it is trained on; for evaluation it need not hold all classes.
    """
    counts = count_boxes(annotations)
    if not counts.any():
        ignored = sum(len(record.labels) for record in annotations.records)
        but = f", but for {counted(ignored, 'boxes to ignore')}" if ignored else ""
        yield Problem(
            f"none of {len(annotations.records)} images has an object{but}",
            "see that the annotation file is the one of these images (preflight=off trains all the same)",
        )
        return
    if not trained:
        return
    named = dict(zip(annotations.classes, counts.tolist(), strict=True))
    if absent := [name for name, count in named.items() if count == 0]:
        yield Problem(
            f"no object is of class {few(absent)}, {len(absent)} of {len(counts)} classes",
            "see that the classes are spelt as in the annotations, or leave these out of data.classes",
            severe=False,
        )
    scarce = sorted((count, name) for name, count in named.items() if 0 < count < FEW_BOXES)
    if scarce and sum(named.values()) > FEW_BOXES * len(named):  # not where everything is tiny, as in a trial
        shown = few([f"{name} ({count})" for count, name in scarce])
        yield Problem(
            f"{len(scarce)} of {len(named)} classes have fewer than {FEW_BOXES} boxes: {shown}",
            "annotate more of these classes, or leave them out: so few do not teach a detector",
            severe=False,
        )


def spelling_problems(counts: Mapping[str, int]) -> Iterator[Problem]:
    """Tell of classes that are probably one, spelt in two ways.

    Args:
        counts: boxes of each class, by name.
    """
    pairs = similar_names(list(counts))
    if pairs:
        shown = few(
            [f"{quote(a)} ({counted(counts[a], 'boxes')}) and {quote(b)} ({counts[b]})" for a, b in pairs]
        )
        yield Problem(
            f"{counted(len(pairs), 'pairs of classes')} that differ by case, blanks or one letter: {shown}",
            "if they are one class, give it one name in the annotations: a detector learns them as two",
            severe=False,
        )


def similar_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of names that differ by case, blanks, a plural or, in long ones, by a letter.

    Numbers and single letters tell classes apart, as in ``type 1`` and ``type 2``: no slip is seen there.
    """
    plain = [_plain(name) for name in names]
    by_rest: dict[str, list[int]] = {}
    for position, name in enumerate(plain):
        for rest in {name, *(_without(name, place) for place in range(len(name)))}:
            by_rest.setdefault(rest, []).append(position)
    pairs = {
        (a, b)
        for positions in by_rest.values()
        for at, a in enumerate(positions)
        for b in positions[at + 1 :]
        if a != b and _is_slip(names[a], names[b])
    }
    return [(names[a], names[b]) for a, b in sorted(pairs)]


def split_class_problems(train: Annotations, val: Annotations) -> Iterator[Problem]:
    """Tell of classes that only one of two splits has boxes of; both splits name the same classes."""
    trained, measured = count_boxes(train), count_boxes(val)
    if not (trained.any() and measured.any()):  # told by class_problems
        return
    for own, other, means, remedy in (
        (trained, measured, "their AP is not measured", "move some of their images to the validation split"),
        (measured, trained, "they cannot be learned", "move some of their images to the training split"),
    ):
        alone = [(name, n) for name, n, m in zip(train.classes, own, other, strict=True) if n and not m]
        if alone:
            where = "training" if own is trained else "validation"
            shown = few([f"{name} ({count})" for name, count in sorted(alone, key=lambda pair: -pair[1])])
            yield Problem(
                f"{len(alone)} of {len(train.classes)} classes have boxes in the {where} split alone: "
                f"{shown}: {means}",
                remedy,
                severe=False,
            )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _without(text: str, place: int) -> str:
    """Return the text without the character at a place."""
    return text[:place] + text[place + 1 :]


def _is_slip(a: str, b: str) -> bool:
    first, second = sorted((_plain(a), _plain(b)), key=len)
    if first == second:
        return True
    if len(second) - len(first) > 1 or _numbers(a) != _numbers(b) or _letters(a) != _letters(b):
        return False
    if second == f"{first}s":
        return len(first) > 2
    if len(first) == len(second):
        differing = [place for place, pair in enumerate(zip(first, second, strict=True)) if len({*pair}) > 1]
        swapped = len(differing) == 2 and (
            differing[1] == differing[0] + 1
            and first[differing[0]] == second[differing[1]]
            and first[differing[1]] == second[differing[0]]
        )
        return len(first) >= _LONG and (len(differing) == 1 or swapped)
    return len(first) >= _LONG - 1 and any(_without(second, place) == first for place in range(len(second)))


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _letters(name: str) -> list[str]:
    return re.findall(r"(?<![^\W_])[^\W\d_](?![^\W_])", name.casefold())

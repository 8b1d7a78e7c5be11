"""Checks of a training and a validation split against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from defeat.data.class_checks import count_boxes, spelling_problems, split_class_problems
from defeat.data.pictures import Pictures, nearly_same
from defeat.io.safe_read import open_regular
from defeat.io.text import counted, few, quote
from defeat.types import Annotations, Problem

MOST_FILES = 2000
"""Pictures of which files are compared when a run begins; of more, their paths alone are."""

_TOO_GOOD = "figures of the validation are too good: take them out of one of the two"


def split_problems(
    train: Annotations, val: Annotations, *, most_files: int | None = MOST_FILES
) -> Iterator[Problem]:
    """Tell of classes that are probably one or that one split lacks, and of pictures in both splits.

    Args:
        train: the training split.
        val: the validation split, with the same classes.
        most_files: with more pictures than this, files are not compared by their content; None compares any
            number.
    """
    boxes = (count_boxes(train) + count_boxes(val)).tolist()
    yield from spelling_problems(dict(zip(train.classes, boxes, strict=True)))
    yield from split_class_problems(train, val)
    yield from _shared_pictures(train, val, most_files)


def nearly_same_problems(
    train: Annotations, val: Annotations, looked_train: Pictures, looked_val: Pictures
) -> Iterator[Problem]:
    """Tell of pictures of both splits that are nearly, but not exactly the same."""
    known = {val_path for _, val_path in _same_pairs(train, val, None)}
    pairs = [
        (train.records[a].path, val.records[b].path)
        for a, b in nearly_same(looked_train, looked_val)
        if val.records[b].path not in known
    ]
    if pairs:
        yield Problem(
            f"{len(pairs)} of {len(val.records)} validation pictures are nearly the same as one of the "
            f"training: {_shown(pairs)}",
            "look at them: frames of one film or copies of one picture belong into one split, or figures of "
            "the validation are too good",
            severe=False,
        )


def _shared_pictures(train: Annotations, val: Annotations, most_files: int | None) -> Iterator[Problem]:
    pairs = _same_pairs(train, val, most_files)
    if pairs and len(pairs) == len(val.records):
        sources = " and ".join(quote(Path(s).name) for s in dict.fromkeys((train.source, val.source)))
        yield Problem(
            f"all {len(pairs)} pictures of the validation split are in the training split too, read from "
            f"{sources}",
            "see that the validation has annotations of its own: its figures say nothing about new pictures",
            severe=False,
        )
    elif pairs:
        yield Problem(
            f"training and validation share {counted(len(pairs), 'pictures')} ({_shown(pairs)})",
            _TOO_GOOD,
            severe=False,
        )


def _same_pairs(train: Annotations, val: Annotations, most_files: int | None) -> list[tuple[Path, Path]]:
    """Return the paths of pictures of the two splits that are one file, or files of equal content."""
    paths, val_paths = ([record.path for record in split.records] for split in (train, val))
    known = set(paths)
    pairs = [(path, path) for path in val_paths if path in known]
    if most_files is None or len(paths) + len(val_paths) <= most_files:
        others = [path for path in val_paths if path not in known]
        by_digest = _equal_files(paths, others)
        pairs += [(by_digest[path], path) for path in others if path in by_digest]
    return pairs


def _equal_files(first: list[Path], second: list[Path]) -> dict[Path, Path]:
    """Return, for each of the second files that has one, a first file of the same content."""
    with ThreadPoolExecutor(16) as pool:  # a network disk answers many at a time
        sizes = list(pool.map(_size, [*first, *second]))
        both = set(sizes[: len(first)]) & set(sizes[len(first) :]) - {None}
        same_size = [path for path, size in zip([*first, *second], sizes, strict=True) if size in both]
        digests = dict(zip(same_size, pool.map(_digest, same_size), strict=True))
    by_digest: dict[bytes, Path] = {}
    for path in first:
        if digest := digests.get(path):
            by_digest.setdefault(digest, path)
    return {path: by_digest[d] for path in second if (d := digests.get(path)) and d in by_digest}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # told when it is decoded
        return None


def _digest(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return hashlib.blake2b(file.read()).digest()
    except Exception:  # told when it is decoded
        return None


def _shown(pairs: list[tuple[Path, Path]]) -> str:
    return few([a.name if a.name == b.name else f"{a.name} = {b.name}" for a, b in pairs], 2)

"""A data set that is one part alone, divided into training and validation: by lists, or by itself."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from defeat.data.error_policy import OnError
from defeat.data.layouts.layout import Part, Reader
from defeat.data.stratify import stratify
from defeat.errors import ConfigError, DataError
from defeat.io.safe_read import is_dir, is_file, open_regular, read_regular
from defeat.io.text import few, one_line
from defeat.types import Annotations, Record

_log = logging.getLogger(__name__)

PARTS: tuple[Part, ...] = ("train", "val", "test")
LISTS = "splits"
"""The folder below a data set's root in which ``defeat-data split`` writes its lists."""

MOST = 0.5
"""With more of a checkpoint's pictures in a folder than this, the folder is the data set of its training."""

Lists = dict[Part, list[str]]
"""The pictures of each part, by their paths relative to the data set's root."""


class Division:
    """Readers of the parts of a data set that comes in one piece.

    Args:
        whole: reads all of it.
        root: what the paths in lists are relative to.
        split: ``auto``, or a folder of lists; ``auto`` takes those in :data:`LISTS` if they are there.
        fractions: shares of training, validation and, with three, test.
        seed: decides which images go where.

    Raises:
        ConfigError: the fractions make no sense, or the lists are not there.
    """

    def __init__(self, whole: Reader, root: Path, split: str, fractions: Sequence[float], seed: int) -> None:
        check_fractions(fractions)
        self._whole = whole
        self._root = root
        self._fractions = tuple(fractions)
        self._seed = seed
        self._by_given_lists = split != "auto"
        self._read: Annotations | None = None
        self.lists: Lists | None = None
        """Set once they are known: from files, from a checkpoint, or when first read."""
        folder = root / (LISTS if split == "auto" else split)
        if split != "auto" and not is_dir(folder):
            raise ConfigError(f"data.split={split} is neither auto nor a folder of lists in {root}")
        if is_file(folder / "train.txt"):
            self.lists = read_lists(folder)
            _log.info("%s", one_line(f"{root} is divided as the lists in {folder} say"))
        elif split != "auto":
            raise ConfigError(f"data.split={split}: {folder} holds no train.txt; defeat-data split writes it")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that there are."""
        return tuple(self.lists) if self.lists else PARTS[: len(self._fractions)]

    def reader(self, part: Part) -> Reader:
        """Return the reader of a part."""
        return partial(self._read_part, part)

    def take(self, recorded: Mapping[str, Sequence[str]]) -> None:
        """Divide as a checkpoint says that it was, whatever has come to the folder since."""
        self.lists = {part: list(recorded[part]) for part in PARTS if part in recorded}

    def take_if_there(self, recorded: Mapping[str, Sequence[str]]) -> None:
        """Divide as a checkpoint says if the folder holds most of its pictures; otherwise warn.

        Lists that were asked for by name are kept: then it is told if they evaluate on training pictures.
        """
        names = [name for part in recorded.values() for name in part]
        there = sum(is_file(self._root / name) for name in names)
        if self._by_given_lists and self.lists:
            trained = set(recorded.get("train", ()))
            for part in PARTS[1:]:
                if both := [name for name in self.lists.get(part, []) if name in trained]:
                    line = f"{len(both)} of its {part} pictures were trained on ({few(both)})"
                    _log.warning("%s", one_line(f"{self._root}: {line}: figures are too good"))
        elif there > MOST * len(names):
            self.take(recorded)
            _log.info(
                "%s", one_line(f"{self._root} is divided as the checkpoint says that it was in training")
            )
        else:
            line = f"{there} of the {len(names)} pictures that the checkpoint knows are there"
            _log.warning("%s", one_line(f"{self._root}: {line}: divided without regard to its training"))

    def _read_part(
        self, part: Part, classes: Sequence[str] | None = None, on_error: OnError = "raise", root: str = "."
    ) -> Annotations:
        if self._read is None or (classes is not None and tuple(classes) != self._read.classes):
            self._read = self._whole(classes=classes, on_error=on_error, root=root)
        whole = self._read
        if self.lists is None:
            self.lists = divide(whole, self._root, self._fractions, self._seed)
            counts = ", ".join(f"{len(names)} for {name}" for name, names in self.lists.items())
            line = f"{whole.source} is one part: divided by class with seed {self._seed}, {counts}"
            _log.info("%s", one_line(f"{line} (data.split=auto)"))
        by_name = {relative(record, self._root): at for at, record in enumerate(whole.records)}
        names = self.lists.get(part, [])
        there = [by_name[name] for name in names if name in by_name]
        gone = [name for name in names if name not in by_name]
        if gone:
            line = f"{len(gone)} of {len(names)} images of the list for {part} are not there ({few(gone)})"
            if not there:
                raise DataError(one_line(f"{whole.source}: {line}"))
            _log.warning("%s", one_line(f"{whole.source}: {line}: left out"))
        return whole._replace(records=[whole.records[at] for at in there], source=f"{whole.source}, {part}")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise :class:`ConfigError` for anything but two or three positive shares that make up 1."""
    numbers = [f for f in fractions if isinstance(f, int | float) and f > 0]
    if len(numbers) != len(fractions) or len(numbers) not in (2, 3) or abs(sum(numbers) - 1) > 1e-6:
        raise ConfigError(
            f"fractions must be two or three shares that make up 1, such as [0.8,0.2], got {list(fractions)}"
        )


def divide(whole: Annotations, root: Path, fractions: Sequence[float], seed: int) -> Lists:
    """Divide a data set so that each part has its share of the images of every class.

    Pictures whose files are equal go to the same part.

    Raises:
        DataError: there are fewer different pictures than parts.
    """
    records = list(whole.records)
    groups = _equal_pictures(records)
    if len(groups) < len(fractions):
        raise DataError(
            f"{whole.source}: {len(groups)} different pictures cannot be divided into {len(fractions)} parts"
        )
    present = np.zeros((len(groups), len(whole.classes)), dtype=np.int64)  # (G, K)
    for at, group in enumerate(groups):
        for position in group:
            record = records[position]
            present[at, np.unique(record.labels[~record.ignore]) - 1] += 1
    sizes = np.array([len(group) for group in groups], dtype=np.int64)  # (G,)
    chosen = stratify(present, sizes, fractions, seed).tolist()
    part_of_image = {at: PARTS[part] for group, part in zip(groups, chosen, strict=True) for at in group}
    lists: Lists = {part: [] for part in PARTS[: len(fractions)]}
    for at, record in enumerate(records):
        lists[part_of_image[at]].append(relative(record, root))
    return lists


def count_images(whole: Annotations, lists: Lists, root: Path) -> list[tuple[str | int, ...]]:
    """Return a row for all images and for each class: in how many images of each part it has objects."""
    by_name = {relative(record, root): record for record in whole.records}
    parts = [[by_name[name] for name in names] for names in lists.values()]
    rows: list[tuple[str | int, ...]] = [("all", *map(len, parts))]
    for label, name in enumerate(whole.classes, start=1):
        rows.append((name, *(sum(label in record.labels for record in part) for part in parts)))
    return rows


def relative(record: Record, root: Path) -> str:
    """Return a picture's path relative to the root, by which lists name it; the whole where it is outside."""
    path = record.path
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def read_lists(folder: Path) -> Lists:
    """Read the lists in a folder, ``train.txt`` and so on.

    Raises:
        DataError: one cannot be read, or a picture stands in two of them.
    """
    lists: Lists = {}
    part_by_name: dict[str, Part] = {}
    for part in PARTS:
        file = folder / f"{part}.txt"
        if not is_file(file):
            continue
        try:
            lines = read_regular(file).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the list {file} cannot be read: {error}") from error
        lists[part] = list(dict.fromkeys(line for line in lines if line.strip()))
        for name in lists[part]:
            if name in part_by_name:
                raise DataError(f"{folder}: {name} stands in the lists for {part_by_name[name]} and {part}")
            part_by_name[name] = part
    return lists


def _equal_pictures(records: Sequence[Record]) -> list[list[int]]:
    """Group positions of records whose files are equal, byte by byte; only files of one length are read."""
    lengths = [_length(record.path) for record in records]
    often = Counter(lengths)
    groups: dict[Any, list[int]] = {}
    for at, (record, length) in enumerate(zip(records, lengths, strict=True)):
        key = (length, _digest(record.path)) if often[length] > 1 else length
        groups.setdefault(key, []).append(at)
    return list(groups.values())


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return str(path).encode()

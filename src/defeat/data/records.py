"""One record for each image, made of boxes in the order of a file, the same way for every format."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from defeat.data.boxes import clean_boxes
from defeat.data.checks import BoxOrder, box_problems
from defeat.data.error_policy import ErrorPolicy
from defeat.io.text import quote
from defeat.types import Record


class ImageRow(NamedTuple):
    """An image as an annotation file lists it."""

    image_id: int | str
    path: Path | str
    width: int
    height: int


class BoxColumns:
    """Boxes as they are read, a column for each field: 860,000 take 50 MB, as objects a gigabyte."""

    def __init__(self) -> None:
        self.owner = array("q")
        self.xyxy = array("d")
        self.label = array("q")
        self.ignore = array("b")
        self.area = array("d")

    def add(
        self,
        owner: int,
        xyxy: tuple[float, float, float, float],
        label: int,
        ignore: bool,
        area: float = float("nan"),
    ) -> None:
        """Append one box; ``owner`` is its image's position; an area of NaN stands for width times height."""
        self.owner.append(owner)
        self.xyxy.extend(xyxy)
        self.label.append(label)
        self.ignore.append(ignore)
        self.area.append(area)

    def extend(
        self,
        owner: NDArray[np.int64],
        xyxy: NDArray[np.float64],
        label: NDArray[np.int64],
        ignore: NDArray[np.bool_],
        area: NDArray[np.float64],
    ) -> None:
        """Append N boxes: as :meth:`add`, (N, 4) and (N,)."""
        self.owner.frombytes(owner.tobytes())
        self.xyxy.frombytes(xyxy.tobytes())
        self.label.frombytes(label.tobytes())
        self.ignore.frombytes(ignore.tobytes())
        self.area.frombytes(area.tobytes())


class Records(Sequence[Record]):
    """Records that are made when asked for, from a handful of arrays.

    As objects they would take four times the memory, and would not stay shared between the processes that
    decode: to look at one writes its reference count, so each process ends with a copy of all.

    A slice shares the arrays, and a record's boxes are views of them.

    Args:
        images: I images, whose ids are all numbers or all texts.
        counts: (I,) how many boxes each of them has.
        boxes: (B, 4) xyxy of one image after the other; so are the following.
        labels: (B,).
        ignore: (B,).
        area: (B,).
    """

    def __init__(
        self,
        images: Sequence[ImageRow],
        counts: NDArray[np.int64],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        ignore: NDArray[np.bool_],
        area: NDArray[np.float32],
    ) -> None:
        ids = [row.image_id for row in images]
        named = any(isinstance(image_id, str) for image_id in ids)
        self._ids = _Texts(map(str, ids)) if named else np.array(ids, dtype=np.int64)
        self._paths = _Texts(str(row.path) for row in images)
        self._sizes = np.array([(row.width, row.height) for row in images], dtype=np.int64).reshape(-1, 2)
        self._first = np.append(0, np.cumsum(counts))
        self._columns = (boxes, labels, ignore, area)
        self._chosen = np.arange(len(images))

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, which: int) -> Record: ...

    @overload
    def __getitem__(self, which: slice) -> Records: ...

    def __getitem__(self, which: int | slice) -> Record | Records:
        if not isinstance(which, slice):
            return self._make(int(self._chosen[which]))
        part = copy(self)
        part._chosen = self._chosen[which]
        return part

    def __iter__(self) -> Iterator[Record]:
        return map(self._make, self._chosen.tolist())

    def _make(self, image: int) -> Record:
        image_id = self._ids[image]
        start, end = self._first[image : image + 2].tolist()
        return Record(
            image_id if isinstance(image_id, str) else int(image_id),
            Path(self._paths[image]),
            *self._sizes[image].tolist(),
            *(column[start:end] for column in self._columns),
        )


def build_records(
    images: Sequence[ImageRow], columns: BoxColumns, policy: ErrorPolicy, box_order: BoxOrder = "xywh"
) -> Records:
    """Clean all boxes at once and hand each image its own, in the order of the images.

    Args:
        images: every image, also those without boxes.
        columns: their boxes in any order, labels already 1..K.
        policy: receives the counts of boxes clipped and dropped, and what is probably wrong with them.
        box_order: the numbers of a box in the file, for messages.
    """
    owner = np.array(columns.owner, dtype=np.int64)
    sizes = np.array([(row.width, row.height) for row in images], dtype=np.int64).reshape(-1, 2)
    xyxy = np.array(columns.xyxy, dtype=np.float64).reshape(-1, 4)
    clean = clean_boxes(xyxy, sizes[owner, 0], sizes[owner, 1])
    policy.add(clean.counts)
    policy.problems.extend(
        box_problems(
            xyxy,
            sizes[owner, 0],
            sizes[owner, 1],
            lambda box: quote(Path(images[owner[box]].path).name),
            box_order,
        )
    )

    owner = owner[clean.kept]
    order = np.argsort(owner, kind="stable")
    boxes = clean.boxes[order]
    label = np.array(columns.label, dtype=np.int64)[clean.kept][order]
    ignore = np.array(columns.ignore, dtype=np.bool_)[clean.kept][order]
    given = np.array(columns.area, dtype=np.float32)[clean.kept][order]
    area = np.where(np.isnan(given), (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), given)
    return Records(images, np.bincount(owner, minlength=len(images)), boxes, label, ignore, area)


class _Texts:
    """Texts end to end in one."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._joined = b"".join(encoded)
        self._first = np.cumsum([0, *map(len, encoded)])

    def __getitem__(self, which: int) -> str:
        start, end = self._first[which : which + 2]
        return self._joined[start:end].decode("utf-8", "surrogatepass")
